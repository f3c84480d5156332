"""A Trainer fit that ends by `Terminated` on SIGTERM, even if the surrounding program handles the signal itself."""

from __future__ import annotations

import lightning as L
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.types import EVAL_DATALOADERS
from torch.utils.data import DataLoader

from ifloo.objective import Batch
from ifloo.termination import Terminated, sigterm_unwinds


def fit_unless_terminated(
    trainer: L.Trainer,
    module: L.LightningModule,
    data: DataLoader[Batch] | L.LightningDataModule | None = None,
    validation: EVAL_DATALOADERS | None = None,
) -> None:
    """Fits a module with a Trainer.

    If the program has its own handler, Lightning calls it and only records the signal: it ends the fit between two
    batches or epochs, by an exit without a code, and not at all after the last of them.

    Args:
        trainer: Trainer of the fit.
        module: Module to fit.
        data: Training loader, or data module; None if the module has its own loader.
        validation: Validation loaders, beside a training loader.

    Raises:
        Terminated: If the process receives SIGTERM.
    """
    try:
        with sigterm_unwinds():
            trainer.fit(module, data, validation)
    except SIGTERMException as error:
        raise Terminated from error
    except Exception as error:
        if trainer.received_sigterm:  # else an exception that ends a check on purpose would hide the signal
            raise Terminated from error
        raise
    if trainer.received_sigterm:
        raise Terminated
