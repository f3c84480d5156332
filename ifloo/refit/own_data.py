"""Callback by which a module that reads `self.trainer.datamodule` in a fit finds the data module of its author."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import lightning as L

from ifloo.data import unwrap_data
from ifloo.models.lightning_classes import is_data_module


@runtime_checkable
class OfData(Protocol):
    """A loader function that keeps the data module it asks."""

    @property
    def data(self) -> object: ...


def own_data_of(loader: object) -> L.LightningDataModule | None:
    """Returns the author's data module behind a loader function; None if it keeps none."""
    own = unwrap_data(loader.data) if isinstance(loader, OfData) else None
    return own if is_data_module(own) else None


class OwnData(L.Callback):
    """Shows the author's data module as that of the Trainer, from the set-up of the module to the end of the fit.

    The Trainer itself neither sets it up nor tears it down: many refits share it.
    """

    def __init__(self, data: L.LightningDataModule | None) -> None:
        self.data = data
        self._before: tuple[L.LightningDataModule | None, L.Trainer | None] = None, None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self.data is not None or stage == "fit":  # validation afterwards takes its loaders from the Trainer's own
            self._before = self._show(trainer, self.data, trainer)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._show(trainer, *self._before)

    def _show(
        self, trainer: L.Trainer, data: L.LightningDataModule | None, of_data: L.Trainer | None
    ) -> tuple[L.LightningDataModule | None, L.Trainer | None]:
        """Sets the data module of the Trainer and the Trainer of the own data module; returns those before."""
        before = trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it undeclared
        trainer.datamodule = data  # type: ignore[attr-defined]
        if self.data is None:
            return before, None
        trainer_before, self.data.trainer = self.data.trainer, of_data
        return before, trainer_before
