"""The order of training batches as a function of the seed alone, so that a refit sees what the base fit saw."""

from __future__ import annotations

import lightning as L
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler


class SeededOrder(L.Callback):
    """Gives a shuffling loader a generator of its own, from the seed of the run.

    Without one it asks the global generator at the start of each epoch, whose state depends on what else has drawn from
    it: validation loops, sanity checks, a logger. A refit has none of these, and would see other batches.
    """

    def __init__(self) -> None:
        """Has given nothing yet."""
        self._given: RandomSampler | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        loader = trainer.train_dataloader
        # Where a loader was made from a batch sampler (`identified` does so), its own sampler draws nothing.
        batches = loader.batch_sampler if isinstance(loader, DataLoader) else None
        sampler = batches.sampler if isinstance(batches, BatchSampler) else None
        if isinstance(sampler, RandomSampler) and sampler.generator is None:
            sampler.generator = torch.Generator().manual_seed(torch.initial_seed())
            self._given = sampler

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Takes it back: a loader that serves the next fit too must not go on where this one stopped."""
        if self._given is not None:
            self._given.generator = None
            self._given = None
