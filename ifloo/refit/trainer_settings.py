"""Settings of a Trainer that change the weights it trains, and Trainers made from them without output or logs."""

from __future__ import annotations

import dataclasses
import logging
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Any

import lightning as L

from ifloo.errors import InputError
from ifloo.refit.seeded_order import SeededOrder

_FULL_NAMES = {"64": "64-true", "32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}  # precisions in Lightning


@dataclass(frozen=True)
class TrainerSettings:
    """Settings of a Trainer that change the weights it trains.

    Attributes:
        max_epochs: Number of passes over the data; with L-BFGS, of outer steps.
        accumulate_grad_batches: Number of batches per optimizer step.
        gradient_clip_val: Largest gradient norm or entry; None does not clip.
        precision: Precision by Lightning's name, such as `64-true`.
        max_steps: Largest number of optimizer steps; -1 sets no limit.
        gradient_clip_algorithm: Kind of clipping, `norm` or `value`.
        accelerator: Accelerator by Lightning's name; it changes only rounding, so it is not compared.
    """

    max_epochs: int = 1
    accumulate_grad_batches: int = 1
    gradient_clip_val: int | float | None = None
    precision: str = "32-true"
    max_steps: int = -1
    gradient_clip_algorithm: str | None = None
    accelerator: str = "auto"

    @classmethod
    def of(cls, trainer: L.Trainer) -> TrainerSettings:
        """Reads the settings of the Trainer of a base fit.

        Raises:
            InputError: If the Trainer uses part of the data or has no `max_epochs`, which refits cannot repeat.
        """
        refuse_partial_data(trainer.limit_train_batches, trainer.overfit_batches)  # type: ignore[attr-defined]
        if trainer.max_epochs is None:
            raise InputError(
                "A base fit must have an end that refits can repeat; got max_epochs = None.\n  Set max_epochs."
            )
        return cls(
            trainer.max_epochs,
            trainer.accumulate_grad_batches,
            trainer.gradient_clip_val,
            str(trainer.precision),
            trainer.max_steps,
            _algorithm_name(trainer.gradient_clip_algorithm),
            type(trainer.accelerator).__name__.removesuffix("Accelerator").lower(),
        )

    @classmethod
    def from_flags(cls, trainer: object) -> TrainerSettings:
        """Converts Trainer settings given by flags and config; those not given are Lightning's defaults.

        Args:
            trainer: Object with the settings as attributes, None for those not given.
        """
        names = [one.name for one in dataclasses.fields(cls) if one.name != "accelerator"]
        given = {name: value for name in names if (value := getattr(trainer, name, None)) is not None}
        precision, algorithm = str(given.get("precision", cls.precision)), given.get("gradient_clip_algorithm")
        normalised = {
            "precision": _FULL_NAMES.get(precision, precision),
            "gradient_clip_algorithm": _algorithm_name(algorithm),
        }
        return cls(**{**given, **normalised})

    def identity_settings(self) -> dict[str, Any]:
        """Returns the settings that change a number, by name."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "accelerator"}

    def trainer(self, ending: L.Callback) -> L.Trainer:
        """Makes a new Trainer; one that has already fitted would silently train nothing.

        Args:
            ending: Callback that acts when training ends.
        """
        return L.Trainer(
            max_epochs=self.max_epochs,
            max_steps=self.max_steps,
            gradient_clip_algorithm=self.gradient_clip_algorithm,
            accumulate_grad_batches=self.accumulate_grad_batches,
            gradient_clip_val=self.gradient_clip_val,
            precision=self.precision,  # type: ignore[arg-type]
            accelerator=self.accelerator,
            devices=1,
            callbacks=[SeededOrder(), ending],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            limit_val_batches=0,
        )


def refuse_partial_data(limit_train_batches: object, overfit_batches: object) -> None:
    """Checks that a Trainer with these settings trains on all samples.

    Raises:
        InputError: If it trains on part of them.
    """
    if limit_train_batches not in (None, 1.0) or overfit_batches:
        raise InputError(
            f"Refits train on all the data, as J is over all of it; got limit_train_batches = {limit_train_batches}, "
            f"overfit_batches = {overfit_batches}.\n  To train on fewer samples limit the data module."
        )


def _algorithm_name(algorithm: object) -> str | None:
    """Converts the clipping algorithm to a string: Lightning's enum would be code to execute in a checkpoint."""
    return None if algorithm is None else str(algorithm.value if isinstance(algorithm, Enum) else algorithm).lower()


@contextmanager
def quiet_lightning() -> Generator[None, None, None]:
    """Silences Lightning's notes on devices, tips and worker counts in hundreds of refits, but no warnings of ifloo."""
    loggers = [
        logging.getLogger(name)
        for package in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning_fabric")
        for name in (package, f"{package}.utilities.rank_zero")
    ]
    levels = [one.level for one in loggers]
    for one in loggers:
        one.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=UserWarning, module="(pytorch_)?lightning")
            yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)
