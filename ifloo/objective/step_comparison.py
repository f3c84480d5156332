r"""Comparison of the gradient of a training step on a batch with that of J on the same samples.

Rounding. Both gradients are the sum (1/b) Σ_i G_i + ∇R, formed in different orders. Two bounds of Higham (Accuracy
and Stability of Numerical Algorithms, sections 3.1 and 4.2) with the probabilistic constants of Higham & Mary 2019
(SIAM J. Sci. Comput. 41, A2815), where k roundings grow like λ√k u with probability 1 - 2 exp(-λ²/2):

  1. Adding b terms: an error of at most λ √b u · (1/b) Σ ‖G_i‖.
  2. A forward and backward pass made of inner products of length k is backward stable: the computed G_i is the exact
     one at weights that differ relatively by λ √k u. Its effect is λ √k times the change of the gradient when each
     weight moves by one rounding, θ(1 ± u), which is measured: that change holds the condition of the network, and
     kinks (ReLU) that a rounding crosses.

With λ = 6 a bound fails with a probability of 3e-8.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from ifloo.objective.certificate import Part

Samples: TypeAlias = Sequence[object]  # samples as the dataset returns them
SingleGradients: TypeAlias = Callable[[Samples], Tensor]  # samples -> ∇ℓ_i, [b, q]
Without: TypeAlias = Collection[Part]

LAMBDA = 6.0  # λ of the module's docstring
KEPT_BYTES = 1 << 28  # gradients of the samples of a batch that are kept; larger ones are computed again
CHUNK_BYTES = 1 << 26  # gradients of samples computed in one call


@runtime_checkable
class TrainingStep(Protocol):
    """The user's training step, which runs again on given samples.

    Attributes:
        parts: Parts of the step that can be taken away, with a noun phrase for each.
        sizes: Number of entries of each attributed parameter, by name, in the order of the gradient.
        unit_roundoff: Unit roundoff of the weights' precision.
        longest_sum: Length of the longest inner product of a layer.
    """

    parts: Mapping[Part, str]
    sizes: Mapping[str, int]
    unit_roundoff: float
    longest_sum: int

    def gradient(self, samples: Samples, without: Without = (), rounded: bool = False) -> Float[Tensor, " q"]:
        """Returns the gradient of the training step on a batch of these samples, before the optimizer's own decay.

        Args:
            samples: Samples of the batch.
            without: Parts of the step that are taken away.
            rounded: Whether each weight is moved by one rounding, up or down at random.
        """
        ...


@dataclass(frozen=True)
class Difference:
    """Difference of two gradients over several batches.

    Attributes:
        relative: Norm of the difference over that of the second, the latter at least that of a mean of b independent
            gradients of samples: at a minimum both gradients vanish.
        cosine: Cosine of the angle between the two; None where one of them is zero up to rounding.
        ratio: Largest ratio of a difference to what rounding allows.
        allowed: Relative difference that rounding allows.
    """

    relative: float
    cosine: float | None
    ratio: float
    allowed: float

    @property
    def equal(self) -> bool:
        """Whether rounding explains the difference."""
        return self.ratio <= 1.0


@dataclass(frozen=True)
class BatchOfSingles:
    """Gradients of the samples of one batch.

    Attributes:
        samples: Samples.
        singles: Function that computes their gradients.
        mean: (1/b) Σ ∇ℓ_i, `[q]`.
        size: (1/b) Σ ‖∇ℓ_i‖.
        kept: All ∇ℓ_i, `[b, q]`, if they take little memory.
    """

    samples: Samples
    singles: SingleGradients
    mean: Float[Tensor, " q"]
    size: float
    kept: Float[Tensor, "b q"] | None = field(default=None, repr=False)

    @classmethod
    def of(cls, samples: Samples, singles: SingleGradients) -> BatchOfSingles:
        """Computes the gradients in chunks."""
        first = singles(samples[:1])
        keep = first.numel() * len(samples) * first.element_size() <= KEPT_BYTES
        kept = [first] if keep else []
        total, size = first.sum(0), float(first.norm())
        for rows in _chunks(samples, singles, first.shape[1]):
            total, size = total + rows.sum(0), size + float(rows.norm(dim=1).sum())
            if keep:
                kept.append(rows)
        return cls(samples, singles, total / len(samples), size / len(samples), torch.cat(kept) if keep else None)

    @property
    def norm(self) -> float:
        """Norm of the mean, at least that of a mean of independent gradients of this size."""
        return max(float(self.mean.norm()), self.size / math.sqrt(len(self.samples)))

    def row(self, position: int) -> Float[Tensor, " q"]:
        """Returns the gradient of one sample."""
        return self.kept[position] if self.kept is not None else self.singles([self.samples[position]])[0]

    def weighted(self, weights: Float[Tensor, " b"]) -> Float[Tensor, " q"]:
        """Returns Σ a_i ∇ℓ_i / Σ a_i."""
        shares = (weights / weights.sum()).to(self.mean)
        if self.kept is not None:
            return shares @ self.kept
        rows = (share * self.row(position) for position, share in enumerate(shares))
        return torch.stack([sum(rows, torch.zeros_like(self.mean))])[0]


def _chunks(samples: Samples, singles: SingleGradients, q: int) -> list[Tensor] | map[Tensor]:
    """Returns the gradients of all samples but the first, in chunks of bounded memory."""
    size = max(1, min(64, CHUNK_BYTES // (8 * q)))
    return map(singles, [samples[k : k + size] for k in range(1, len(samples), size)])


def rounding_bound(step: TrainingStep, batch: BatchOfSingles, response: float) -> float:
    """Returns the norm of the difference that rounding allows; see the derivation above.

    Args:
        step: Training step.
        batch: Gradients of the samples.
        response: Change of the gradient of the step when each weight moves by one rounding.
    """
    adding = math.sqrt(len(batch.samples)) * step.unit_roundoff * batch.size
    return LAMBDA * (adding + math.sqrt(step.longest_sum) * response)


class DifferenceSum:
    """Sum of the differences of two gradients over batches."""

    def __init__(self) -> None:
        self.squares, self.norms, self.bounds = 0.0, 0.0, 0.0
        self.dot, self.first, self.second, self.ratio = 0.0, 0.0, 0.0, 0.0

    def add(self, one: Tensor, other: Tensor, norm: float, bound: float) -> None:
        """Adds a batch.

        Args:
            one: Gradient of the training step.
            other: Gradient of J.
            norm: Norm that the difference is relative to.
            bound: Norm of a difference that rounding allows.
        """
        difference = float((one - other).norm())
        self.squares, self.norms, self.bounds = (
            self.squares + difference**2,
            self.norms + norm**2,
            self.bounds + bound**2,
        )
        self.dot, self.first = self.dot + float(one @ other), self.first + float(one @ one)
        self.second += float(other @ other)
        ratio = difference / bound if bound > 0 else (0.0 if difference == 0 else math.inf)
        self.ratio = max(self.ratio, ratio if math.isfinite(difference) else math.inf)

    def result(self) -> Difference:
        """Returns the difference over all batches added."""
        noise = 10 * math.sqrt(self.bounds)
        product = math.sqrt(self.first * self.second)
        tiny = min(self.first, self.second) <= noise**2 or not math.isfinite(product) or product == 0
        scale = math.sqrt(self.norms) or 1.0
        return Difference(
            math.sqrt(self.squares) / scale,
            None if tiny else self.dot / product,
            self.ratio,
            math.sqrt(self.bounds) / scale,
        )
