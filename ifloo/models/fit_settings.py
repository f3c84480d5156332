"""Settings of the Trainer and optimizers of a module, which determine one step of a fit, as plain values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from torch import optim

FULL_PRECISION = ("32-true", "64-true")  # as Lightning names them


@dataclass(frozen=True)
class FitSettings:
    """Settings of a Trainer that determine one optimizer step.

    Attributes:
        precision: Precision of the fit, as Lightning names it.
        gradient_clip_val: Bound at which gradients are clipped; None or 0 if they are not.
        gradient_clip_algorithm: Quantity that is bounded, `norm` or `value`; None means `norm`.
        accumulate_grad_batches: Number of batches in one step.
        batches: Number of batches in one epoch; infinity if the loader does not know it.
        world_size: Number of processes.
    """

    precision: str
    gradient_clip_val: float | None
    gradient_clip_algorithm: str | None
    accumulate_grad_batches: int
    batches: int | float
    world_size: int

    @classmethod
    def of(
        cls, trainer: Any, batches: int | float | None = None, recorded: Mapping[str, Any] | None = None
    ) -> FitSettings:
        """Reads the settings of a Trainer.

        Args:
            trainer: A Trainer, within a fit unless `batches` is given.
            batches: Number of batches in one epoch; None for that of the present fit.
            recorded: Settings a model was trained with, by name; they take precedence over those of the Trainer.
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
        """Whether some of the arithmetic has a lower precision than the weights."""
        return self.precision not in FULL_PRECISION


def optimizers_in(configured: Any) -> Iterator[optim.Optimizer]:
    """Yields the optimizers in the result of `configure_optimizers`, in any of the forms that Lightning takes."""
    if isinstance(configured, optim.Optimizer):
        yield configured
    elif isinstance(configured, Mapping):
        yield from optimizers_in(configured.get("optimizer"))
    elif isinstance(configured, (tuple, list)):
        for one in configured:
            yield from optimizers_in(one)
