"""A training step and gradients of single samples in some of the parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jaxtyping import Bool, Float
from torch import Tensor

from ifloo.objective.certificate import Part
from ifloo.objective.step_comparison import Samples, SingleGradients, TrainingStep, Without


class _Restricted:
    """A training step of which some entries of the gradient are read."""

    def __init__(self, step: TrainingStep, names: Sequence[str], kept: Bool[Tensor, " q"]) -> None:
        self._step, self._kept = step, kept
        self.parts: Mapping[Part, str] = step.parts
        self.sizes: Mapping[str, int] = {name: size for name, size in step.sizes.items() if name in names}
        self.unit_roundoff, self.longest_sum = step.unit_roundoff, step.longest_sum

    def gradient(self, samples: Samples, without: Without = (), rounded: bool = False) -> Float[Tensor, " r"]:
        return self._step.gradient(samples, without, rounded)[self._kept]


def restricted_step(step: TrainingStep, names: Sequence[str], kept: Bool[Tensor, " q"]) -> TrainingStep:
    """Returns the step in the parameters of these names, whose entries are `kept`."""
    return _Restricted(step, names, kept)


def restricted_singles(singles: SingleGradients, kept: Bool[Tensor, " q"]) -> SingleGradients:
    """Returns the function that computes the entries `kept` of the gradients of samples."""
    return lambda samples: singles(samples)[:, kept]
