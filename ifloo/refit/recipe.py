"""How a base model was trained, and so how each refit is: one Trainer fit, quiet, with nothing written."""

from __future__ import annotations

import dataclasses
import logging
import time
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar

import lightning as L
from torch.utils.data import DataLoader

from ifloo.errors import InputError, WorkError
from ifloo.minimize.newton_cg import FitEnd
from ifloo.models import SampleLossModule
from ifloo.models.module import callbacks_of
from ifloo.objective import Batch, SampleWeights
from ifloo.objective.loaders import identified
from ifloo.refit.newton_finish import NewtonFinish
from ifloo.refit.seeded_order import SeededOrder
from ifloo.termination import sigterm_unwinds

ModuleT = TypeVar("ModuleT", bound=L.LightningModule)
_FULL_NAMES = {"64": "64-true", "32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}  # Lightning's, of precisions


@dataclass(frozen=True)
class TrainerSettings:
    """The settings of a Trainer that change what it trains.

    Attributes:
        max_epochs: passes over the data; with L-BFGS, outer steps.
        accumulate_grad_batches: batches to a step.
        gradient_clip_val: largest gradient norm; null: no clipping.
        precision: as Lightning names it.
        max_steps: optimizer steps at most; -1: no limit.
        gradient_clip_algorithm: `norm` or `value`.
        accelerator: where it runs (changes rounding only, so it is not compared).
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
            InputError: If the Trainer trains on part of the data or without an end, which no refit repeats.
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
            _plain(trainer.gradient_clip_algorithm),
            type(trainer.accelerator).__name__.removesuffix("Accelerator").lower(),
        )

    @classmethod
    def from_flags(cls, trainer: object) -> TrainerSettings:
        """The recipe of Trainer settings as flags and config say them; what is unsaid is Lightning's default.

        Args:
            trainer: settings by attribute, None where nothing was said.
        """
        names = [one.name for one in dataclasses.fields(cls) if one.name != "accelerator"]
        given = {name: value for name in names if (value := getattr(trainer, name, None)) is not None}
        precision, algorithm = str(given.get("precision", cls.precision)), given.get("gradient_clip_algorithm")
        as_stored = {"precision": _FULL_NAMES.get(precision, precision), "gradient_clip_algorithm": _plain(algorithm)}
        return cls(**{**given, **as_stored})

    def identity_settings(self) -> dict[str, Any]:
        """The part of it that changes numbers."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "accelerator"}

    def trainer(self, ending: L.Callback) -> L.Trainer:
        """A fresh Trainer: one that has fitted already would silently train nothing."""
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


def _plain(algorithm: object) -> str | None:
    """How gradients are clipped, as a string: Lightning's enum in a checkpoint would be code to be loaded."""
    return None if algorithm is None else str(algorithm.value if isinstance(algorithm, Enum) else algorithm).lower()


class _Repeated(L.Callback):
    """Lets through what the base fit was let through with: its steps, decoupled decay included, are taken again."""

    records_steps = True


class _Ending(L.Callback):
    """Ends one fit as a `NewtonFinish` does, which fits share; holds the end of this fit alone."""

    def __init__(self, finish: NewtonFinish) -> None:
        self.finish = finish
        self._end: FitEnd | None = None

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._end = self.finish.end_fit(trainer, pl_module)

    def require(self) -> FitEnd:
        """Returns the end of the fit.

        Raises:
            WorkError: If the fit has not reached its end.
        """
        if self._end is None:
            raise WorkError("A refit was interrupted before its end.\n  The same command goes on from here.")
        return self._end


@dataclass(frozen=True)
class Refit:
    """A refitted module and how its fit ended.

    Attributes:
        module: trained, with the weights of the samples it was trained under.
        minimum: J, ‖∇J‖ and steps at its end.
        seconds: of wall clock; where many were trained together its share.
    """

    module: SampleLossModule
    minimum: FitEnd
    seconds: float


@dataclass(frozen=True)
class Refitter:
    """Fits the same model again under other sample weights: same loader, seed and recipe.

    Attributes:
        start: makes the module a refit starts from (a copy of the base model, or a new one).
        loader: makes the training loader, anew for each fit.
        recipe: of the Trainer.
        finish: Callback that ends every fit; all fits share its data and preconditioner.
        seed: set before each fit.
        decays: decoupled weight decay is part of the step, as of that of a recorded base fit; else it is refused.
    """

    start: Callable[[], SampleLossModule]
    loader: Callable[[], DataLoader[Batch]]
    recipe: TrainerSettings
    finish: NewtonFinish
    seed: int
    decays: bool = False

    def fit(
        self, weights: SampleWeights | None = None, prepare: Callable[[SampleLossModule], None] | None = None
    ) -> Refit:
        """One refit through a Trainer.

        Args:
            weights: w; None: nothing removed.
            prepare: changes the module before the fit (a displaced start).

        Raises:
            WorkError: the fit did not reach the tolerance asked for.
            Terminated: the process received SIGTERM meanwhile.
        """
        begun = time.perf_counter()

        def made() -> SampleLossModule:
            module = self.start()
            module.sample_weights = weights or SampleWeights()
            if prepare:
                prepare(module)
            return module

        ending = _Ending(self.finish)
        module = self.train(made, ending)
        return Refit(module, ending.require(), time.perf_counter() - begun)

    def train(self, made: Callable[[], ModuleT], ending: L.Callback) -> ModuleT:
        """One seeded Trainer fit of the module that `made` gives; the callback sees its end.

        Raises:
            Terminated: the process received SIGTERM meanwhile.
        """
        with sigterm_unwinds(), quiet_lightning():
            L.seed_everything(self.seed, workers=True, verbose=False)
            module = made()
            trainer = self.recipe.trainer(ending)
            if self.decays:
                callbacks_of(trainer).append(_Repeated())
            trainer.fit(module, identified(self.loader()))
        return module


@contextmanager
def quiet_lightning() -> Generator[None, None, None]:
    """Hundreds of refits say nothing about devices, tips and worker counts; real warnings of ours are untouched."""
    loggers = [
        logging.getLogger(name)
        for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")
    ]
    levels = [x.level for x in loggers]
    for x in loggers:
        x.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=UserWarning, module="lightning")
            yield
    finally:
        for x, level in zip(loggers, levels, strict=True):
            x.setLevel(level)
