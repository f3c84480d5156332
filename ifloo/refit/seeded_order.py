"""Order of training batches that depends on the seed alone, so that refits see the batches of the base fit."""

from __future__ import annotations

import lightning as L
import torch
from torch.utils.data import DataLoader, RandomSampler

from ifloo.objective.batch_samplers import SamplerBatches


class SeededOrder(L.Callback):
    """Gives a shuffling loader a separate random generator, seeded with the seed of the run.

    Without one, the sampler draws from the global generator at the start of each epoch, whose state depends on all
    other draws from it: validation loops, sanity checks, loggers. A refit has none of these and would see other
    batches.
    """

    def __init__(self) -> None:
        """Creates the callback; it changes no loader yet."""
        self._seeded: RandomSampler | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        loader = trainer.train_dataloader
        # A loader built from a batch sampler (as `identified` builds it) does not use its own sampler.
        batches = loader.batch_sampler if isinstance(loader, DataLoader) else None
        sampler = batches.sampler if isinstance(batches, SamplerBatches) else None
        if isinstance(sampler, RandomSampler) and sampler.generator is None:
            sampler.generator = torch.Generator().manual_seed(torch.initial_seed())
            self._seeded = sampler

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Removes the generator: a loader used for another fit must not continue where this one stopped."""
        if self._seeded is not None:
            self._seeded.generator = None
            self._seeded = None
