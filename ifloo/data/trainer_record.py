"""Record of the data of a Trainer's fit, in the form in which its checkpoints hold it."""

from __future__ import annotations

import lightning as L
from torch.utils.data import DataLoader

from ifloo.data.fit_record import FitRecord
from ifloo.errors import InputError
from ifloo.objective.batches import Batch


def record_of_fit(trainer: L.Trainer) -> dict[str, object]:
    """Returns the `FitRecord` of the present fit of a Trainer, as plain values and tensors.

    Raises:
        InputError: The fit has several training loaders, or data without samples by position.
    """
    loader = trainer.train_dataloader
    if not isinstance(loader, DataLoader):
        raise InputError(
            f"The record of a fit is of one training DataLoader; this fit has a {type(loader).__name__}.\n"
            "  Concatenate the data sets (torch.utils.data.ConcatDataset)."
        )
    limits = trainer.limit_train_batches, trainer.overfit_batches  # type: ignore[attr-defined]  # Lightning sets it
    return FitRecord.of(loader, _evaluation(trainer), *limits).record()


def _evaluation(trainer: L.Trainer) -> dict[str, DataLoader[Batch]]:
    found = trainer.val_dataloaders
    first = found[0] if isinstance(found, (list, tuple)) and found else found
    return {"val": first} if isinstance(first, DataLoader) else {}
