"""Weights of the samples in J, found at the end of a training and before a Newton finish: it minimises what trained."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import lightning as L
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import DataLoader

from ifloo.errors import InputError, in_one_line
from ifloo.models import Adapted
from ifloo.stages.certificate.examined_run import ExaminedRun
from ifloo.stages.certificate.run_certificate import CertificateRequest, examined

log = logging.getLogger(__name__)


class StatedWeights(L.Callback):
    """States the weights c_i of J = Σ c_i ℓ_i + R in an adapted module when its training ends.

    Its place is before the callback that finishes the fit. A training step that cannot be compared leaves the weights
    to the batches of the loader alone; what scores the fit later says why.
    """

    def __init__(self, ids: Callable[[], Int[Tensor, " n"]]) -> None:
        """Stores the function that returns the ids of the training samples, in their order."""
        self.ids = ids

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        loader = trainer.train_dataloader
        if not isinstance(pl_module, Adapted) or not pl_module.one_by_one or not isinstance(loader, DataLoader):
            return
        request = replace(CertificateRequest.of(pl_module, loader), accept=True, fit_known=True, curved=False)
        try:
            run = ExaminedRun.of(request, examined(request))
        except InputError as error:
            log.info("the finish weighs samples by the batches of the loader alone: %s", in_one_line(error))
            return
        run.state_weights(pl_module, self.ids())
