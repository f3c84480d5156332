"""What decides one step of a fit, as plain values: settings of the Trainer, and the optimizers of a module."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from torch import optim

FULL_PRECISION = ("32-true", "64-true")  # as Lightning names them


@dataclass(frozen=True)
class FitSettings:
    """The settings of a Trainer that decide what one optimizer step is.

    Attributes:
        precision: Precision of the fit, as Lightning names it.
        gradient_clip_val: Bound that gradients are clipped at; None or 0 where they are not.
        gradient_clip_algorithm: What is bounded, `norm` or `value`; None stands for `norm`.
        accumulate_grad_batches: Number of batches in one step.
        batches: Number of batches in one epoch; infinity where the loader does not know it.
        world_size: Number of processes.
    """

    precision: str
    gradient_clip_val: float | None
    gradient_clip_algorithm: str | None
    accumulate_grad_batches: int
    batches: float
    world_size: int

    @classmethod
    def of(cls, trainer: Any, batches: float | None = None, recorded: Mapping[str, Any] | None = None) -> FitSettings:
        """Reads the settings of a Trainer.

        Args:
            trainer: A Trainer, within a fit unless `batches` is given.
            batches: Number of batches in one epoch; None: that of the present fit.
            recorded: Settings a model was trained with, by name; they come before those of the Trainer.
        """
        given = dict(recorded or {})

        def setting(name: str) -> Any:
            return given[name] if name in given else getattr(trainer, name)

        algorithm = setting("gradient_clip_algorithm")
        return cls(
            str(setting("precision")),
            setting("gradient_clip_val"),
            algorithm.value if isinstance(algorithm, Enum) else algorithm,
            setting("accumulate_grad_batches"),
            trainer.num_training_batches if batches is None else batches,
            trainer.world_size,
        )

    @property
    def reduced(self) -> bool:
        """Whether some of the arithmetic runs in fewer digits than the weights have."""
        return self.precision not in FULL_PRECISION


def optimizers_in(configured: Any) -> Iterator[optim.Optimizer]:
    """Gives the optimizers in what `configure_optimizers` returns, in any of the forms that Lightning takes."""
    if isinstance(configured, optim.Optimizer):
        yield configured
    elif isinstance(configured, Mapping):
        yield from optimizers_in(configured.get("optimizer"))
    elif isinstance(configured, (tuple, list)):
        for one in configured:
            yield from optimizers_in(one)
