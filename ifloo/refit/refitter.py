"""Refits that repeat the Trainer fit of a base model under other sample weights."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import lightning as L
from torch.utils.data import DataLoader

from ifloo.errors import InputError, WorkError
from ifloo.minimize.newton_cg import FitEnd
from ifloo.models import Adapted, SampleLossModule
from ifloo.models.hooks import overridden
from ifloo.models.module import callbacks_of
from ifloo.models.run_state import RunState, StandInTrainer, stand_in_trainer
from ifloo.objective import Batch, SampleWeights
from ifloo.objective.loaders import apart, identified
from ifloo.refit.fit_termination import fit_unless_terminated
from ifloo.refit.newton_finish import NewtonFinish
from ifloo.refit.own_data import OwnData, own_data_of
from ifloo.refit.trainer_settings import TrainerSettings, quiet_lightning
from ifloo.termination import sigterm_unwinds

ModuleT = TypeVar("ModuleT", bound=L.LightningModule)
FIT_HOOKS = [  # hooks that Lightning calls in the Trainer of a refit, which neither validates nor writes checkpoints
    name
    for name in vars(L.Callback)
    if name in ("setup", "teardown", "on_exception")
    or name.startswith(("on_fit_", "on_train_", "on_before_", "on_after_"))
]


class _AllowDecoupledDecay(L.Callback):
    """Allows decoupled weight decay in a refit, because the recorded base fit took the same steps with it."""

    records_steps = True


class _Ending(L.Callback):
    """Ends a single fit by a `NewtonFinish` that many fits share, and keeps the end of this fit."""

    def __init__(self, finish: NewtonFinish) -> None:
        self.finish = finish
        self._end: FitEnd | None = None

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._end = self.finish.end_fit(trainer, pl_module)

    def require(self) -> FitEnd:
        """Returns the end of the fit.

        Raises:
            WorkError: If the fit was interrupted.
        """
        if self._end is None:
            raise WorkError("A refit was interrupted before its end.\n  Run the same command to resume.")
        return self._end


@dataclass(frozen=True)
class Refit:
    """A refitted module and the end of its fit.

    Attributes:
        module: Trained module, with the sample weights of its fit.
        minimum: J, ‖∇J‖ and number of steps at the end of the fit.
        seconds: Wall time, seconds; for refits trained together, an equal share of it.
    """

    module: SampleLossModule
    minimum: FitEnd
    seconds: float


@dataclass(frozen=True)
class Refitter:
    """Fits the same model again under other sample weights, with the loader, seed and Trainer settings of the base fit.

    Attributes:
        start: Function that makes the module a refit starts from (a copy of the base model, or a new one).
        loader: Function that makes a new training loader for each fit.
        trainer_settings: Settings of the Trainer.
        finish: Callback that ends every fit; all refits share its data and its preconditioner.
        seed: Random seed, set before each fit.
        allow_decoupled_decay: Whether decoupled weight decay may be part of a step, as in the steps of a recorded base
            fit; if False, it is refused.
    """

    start: Callable[[], SampleLossModule]
    loader: Callable[[], DataLoader[Batch]]
    trainer_settings: TrainerSettings
    finish: NewtonFinish
    seed: int
    allow_decoupled_decay: bool = False

    def __post_init__(self) -> None:
        """Checks that refits call all that the finish does in a fit.

        Raises:
            InputError: If its class overrides hooks of Lightning.
        """
        if hooks := overridden(self.finish, FIT_HOOKS, NewtonFinish):
            raise InputError(
                "Refits end by `end_fit` of their NewtonFinish and call none of its hooks; "
                f"{type(self.finish).__name__} overrides {', '.join(hooks)}.\n"
                "  Override end_fit(trainer, module), which ends the base fit too, and move other work to a separate "
                "callback."
            )

    def fit(
        self, weights: SampleWeights | None = None, prepare: Callable[[SampleLossModule], None] | None = None
    ) -> Refit:
        """Trains one refit with a Trainer.

        Args:
            weights: Sample weights w; None removes no sample.
            prepare: Function that changes the module before the fit, to displace its start.

        Raises:
            WorkError: If the fit does not reach the tolerance of `finish`.
            Terminated: If the process receives SIGTERM.
        """
        begun = time.perf_counter()

        def make() -> SampleLossModule:
            module = self.start()
            module.sample_weights = weights or SampleWeights()
            if prepare:
                prepare(module)
            return module

        ending = _Ending(self.finish)
        module = self.train(make, ending)
        return Refit(module, ending.require(), time.perf_counter() - begun)

    def stand_in(self) -> StandInTrainer:
        """Returns an idle Trainer in the state of the start of a refit, for what is read of it outside a fit."""
        settings = self.trainer_settings
        state = RunState(
            max_epochs=settings.max_epochs,
            max_steps=settings.max_steps,
            precision=settings.precision,
            accumulate_grad_batches=settings.accumulate_grad_batches,
            gradient_clip_val=settings.gradient_clip_val,
            gradient_clip_algorithm=settings.gradient_clip_algorithm,
        )
        return stand_in_trainer(state, own_data_of(self.loader), self.loader())

    def train(self, made: Callable[[], ModuleT], ending: L.Callback) -> ModuleT:
        """Fits a module with a Trainer, after setting the seed.

        Args:
            made: Function that makes the module; called after the seed is set.
            ending: Callback that acts when training ends.

        Returns:
            The trained module.

        Raises:
            Terminated: If the process receives SIGTERM.
        """
        with sigterm_unwinds(), quiet_lightning():
            L.seed_everything(self.seed, workers=True, verbose=False)
            module = made()
            trainer = self.trainer_settings.trainer(ending)
            callbacks_of(trainer).append(OwnData(own_data_of(self.loader)))
            if self.allow_decoupled_decay:
                callbacks_of(trainer).append(_AllowDecoupledDecay())
            fit_unless_terminated(trainer, module, self._loader_for(module))
        return module

    def _loader_for(self, module: L.LightningModule) -> DataLoader[Batch]:
        """Returns the loader of a fit, with samples of other weights apart where a step takes whole batches."""
        loader = identified(self.loader())
        if isinstance(module, Adapted) and module.one_by_one and len(module.sample_weights.ids):
            return apart(loader, module.sample_weights.ids)
        return loader
