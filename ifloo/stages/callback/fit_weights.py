"""Weights of a fit at one of its moments: copies of the module with them, and the fit as the module reads it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import lightning as L
from torch.utils.data import DataLoader

from ifloo.models import Adapted
from ifloo.models.run_state import RunState
from ifloo.objective import Batch
from ifloo.stages.callback.moment import BestCheckpoint
from ifloo.stages.isolation import detached


@dataclass(frozen=True)
class FitWeights:
    """Weights that are scored.

    Attributes:
        trainer: Trainer of the fit, which is only read.
        module: Module of the fit, which is copied.
        loader: Training loader from which samples are read.
        best: Checkpoint with other weights than those of the module at present; None: the present ones.
        ran: Whether the fit has run; False before its first step.
    """

    trainer: L.Trainer
    module: L.LightningModule
    loader: DataLoader[Batch]
    best: BestCheckpoint | None = None
    ran: bool = True

    def copied(self) -> L.LightningModule:
        """Returns a copy of the module with these weights, without its Trainer, on the device of the fit.

        Raises:
            InputError: The module holds an object that cannot be copied.
        """
        one = detached(self.module)
        if self.best is not None:
            self.best.load_into(one)
        return one.to(self.trainer.strategy.root_device)  # Lightning has moved the module to the host when a fit ends

    def describe_to(self, module: L.LightningModule) -> None:
        """States the fit to a module whose losses are taken from its training step: epoch, steps, data."""
        if isinstance(module, Adapted):
            data = self.trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it undeclared
            module.describe_fit(self._state, data, self.trainer.train_dataloader)

    @property
    def _state(self) -> RunState:
        state = RunState.of_trainer(self.trainer)
        if self.best is None:
            return state
        then = RunState.from_checkpoint(self.best.content)
        return replace(
            state,
            epoch=then.epoch,
            global_step=then.global_step,
            optimizers=then.optimizers,
            schedulers=then.schedulers,
        )
