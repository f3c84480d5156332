"""Training data of a fit: its loader, and what a checkpoint records of it."""

from __future__ import annotations

import logging
from contextlib import suppress
from functools import partial

import lightning as L
from torch.utils.data import DataLoader

from ifloo.data.fit_record import FitRecord
from ifloo.data.test_loaders import recorded_loaders
from ifloo.errors import InputError, in_one_line
from ifloo.models import Adapted
from ifloo.models.hooks import overridden
from ifloo.models.run_state import part_of_data
from ifloo.objective import Batch
from ifloo.objective.augmentation import find_augmentation
from ifloo.objective.layers import BATCH_HOOKS
from ifloo.objective.loaders import sequential
from ifloo.objective.protocol import states_losses
from ifloo.objective.sampling import refuse_partial
from ifloo.stages.callback.data_reads import DataReads, only_memory

log = logging.getLogger(__name__)
ONE_MODULE = "DDPStrategy"  # strategy of several processes, each of which holds the whole module


def training_loader(trainer: L.Trainer) -> DataLoader[Batch]:
    """Returns the training loader.

    Raises:
        InputError: There are several loaders, or the weights are split among processes.
    """
    loader = trainer.train_dataloader
    if not isinstance(loader, DataLoader):
        raise InputError(
            "InfluenceCallback scores the data set behind one training DataLoader; this fit has a "
            f"{type(loader).__name__}.\n"
            "  Concatenate the data sets (torch.utils.data.ConcatDataset), or score after the fit."
        )
    if trainer.world_size > 1 and not _is_ddp(trainer.strategy):
        raise InputError(
            f"InfluenceCallback needs the whole module in one process; {type(trainer.strategy).__name__} may split it "
            f"among {trainer.world_size}.\n  Use strategy='ddp', or score after the fit."
        )
    return loader


def warn_of_hooks(trainer: L.Trainer, module: L.LightningModule) -> None:
    """Warns of hooks that change batches before a module that states its losses: only a training step has them."""
    if isinstance(module, Adapted) or not states_losses(module):
        return
    data: L.LightningDataModule | None = trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it undeclared
    owners = {
        "module": (module, L.LightningModule),
        "data module": (data, L.LightningDataModule),
    }
    found = [
        f"{name} of the {owner}" for owner, (one, base) in owners.items() for name in overridden(one, BATCH_HOOKS, base)
    ]
    if found:
        log.warning("Influence is scored on batches as the training loader makes them: without %s.", ", ".join(found))


def _is_ddp(strategy: object) -> bool:
    """Tells whether a strategy is ddp, of `lightning` or of `pytorch_lightning`, which has classes of its own."""
    return ONE_MODULE in (base.__name__ for base in type(strategy).__mro__)


def note_of_augmentation(loader: DataLoader[Batch], draws: int) -> tuple[str, ...]:
    """Returns a note if a sample is another one at another read."""
    if (found := find_augmentation(loader)) is None:
        return ()
    seeds = (
        "under seeds of their own" if found.seeded else "which no seed repeats: the data have a generator of their own"
    )
    return (
        f"training samples are augmented ({found.how}): the scores are of "
        f"{'one draw' if draws == 1 else f'the mean over {draws} draws'} of each, {seeds}.",
    )


def refuse_partial_fit(trainer: L.Trainer, loader: DataLoader[Batch]) -> None:
    """Checks that the fit trains on each sample of its loader equally often.

    Raises:
        InputError: It draws part of them, or some more often than others, or the data have no fixed order.
    """
    refuse_partial(loader, *part_of_data(trainer))
    sequential(loader, 1)


def data_record(trainer: L.Trainer, reads: DataReads) -> dict[str, object] | None:
    """Returns the record of the data that a fit trains on, for its checkpoints; None where they cannot be read."""
    if not trainer.is_global_zero:
        return None  # the first process writes checkpoints
    try:
        loader = training_loader(trainer)
        return reads.once(partial(_record, trainer, reads), loader, alone=_no_code_of_evaluation(trainer))
    except Exception as error:  # of the user's code, too
        log.info("checkpoints hold no record of the training data: %s", in_one_line(error))
        return None


def _record(trainer: L.Trainer, reads: DataReads, loader: DataLoader[Batch]) -> dict[str, object]:
    return FitRecord.of(loader, reads.own(_evaluation(trainer)), *part_of_data(trainer)).record()


def _evaluation(trainer: L.Trainer) -> dict[str, DataLoader[Batch]]:
    """Returns the validation and test loaders of a fit, by their names in a record; only their rows are read."""
    data: L.LightningDataModule | None = trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it undeclared
    module = trainer.lightning_module
    found: dict[str, DataLoader[Batch]] = {}
    with suppress(Exception):  # of the user's code
        found |= recorded_loaders("val", _validation(trainer))
    with suppress(Exception):  # of the user's code: tests may need a set-up of their own, and are then left out
        if data is not None and overridden(data, ("test_dataloader",), L.LightningDataModule):
            found |= recorded_loaders("test", data.test_dataloader())
        elif data is None and overridden(module, ("test_dataloader",), L.LightningModule):
            found |= recorded_loaders("test", module.test_dataloader())
    return found


def _no_code_of_evaluation(trainer: L.Trainer) -> bool:
    """Whether to find the evaluation loaders, and their rows, runs no code of the user's."""
    data: L.LightningDataModule | None = trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it undeclared
    owner, base = (trainer.lightning_module, L.LightningModule) if data is None else (data, L.LightningDataModule)
    if overridden(owner, ("test_dataloader",), base):
        return False
    source = trainer.fit_loop.epoch_loop.val_loop._data_source
    made = trainer.val_dataloaders
    return (made is not None or source.instance is None or not source.is_defined()) and only_memory(made)


def _validation(trainer: L.Trainer) -> object:
    """Returns the validation loaders; Lightning asks for none if the module has no validation step."""
    if trainer.val_dataloaders is not None:
        return trainer.val_dataloaders
    source = trainer.fit_loop.epoch_loop.val_loop._data_source
    return source.dataloader() if source.instance is not None and source.is_defined() else ()
