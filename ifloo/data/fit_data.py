"""Training data held to those of the fit: the rows of its `Subset`s are applied, and the content is compared."""

from __future__ import annotations

import logging

import torch
from torch.utils.data import DataLoader

from ifloo.data.fit_record import FitRecord, behind_of, content_fingerprint
from ifloo.data.subset_rows import Rows, same_rows, subset_rows, with_rows
from ifloo.errors import InputError
from ifloo.objective.batches import Batch, MapDataset
from ifloo.objective.loaders import training_dataset, with_dataset
from ifloo.objective.sampling import refuse_partial

log = logging.getLogger(__name__)
TRAIN = "train"


class HeldRows:
    """Rows of the `Subset`s of each loader of a data module: those of the fit, else those of its first call.

    A split that is drawn at random, in `setup` or in the method that makes the loader, is then the same at each call,
    and that of the fit where its checkpoint records it.

    Attributes:
        record: Record of the fit; None if there is none.
    """

    def __init__(self, record: FitRecord | None = None) -> None:
        """Takes the rows of the fit, if any; nothing is read."""
        self.record = record
        self._rows: dict[str, tuple[Rows, ...]] = {}
        self._logged: set[str] = set()
        if record is not None:
            self._rows = {TRAIN: record.subsets, **record.evaluation}

    def agrees_with(self, record: FitRecord) -> bool:
        """Whether the rows of a fit are those of every loader so far."""
        rows = {TRAIN: record.subsets, **record.evaluation}
        return all(name not in rows or same_rows(held, rows[name]) for name, held in self._rows.items())

    def applied(self, loader: DataLoader[Batch], name: str, where: str) -> DataLoader[Batch]:
        """Returns the loader with the rows held.

        Args:
            loader: Loader of the user's data module.
            name: `train`, `val` or `test`.
            where: Name of the loader in messages.

        Raises:
            InputError: If the rows cannot be applied, or test samples were trained on.
        """
        dataset = training_dataset(loader)
        now = subset_rows(dataset)
        held = self._rows.setdefault(name, now)
        if not same_rows(now, held):
            dataset = _with_rows(dataset, now, held, where)
            if where not in self._logged:
                whose = "first call" if self.record is None else "fit"
                log.info("%s: the rows of the %s are taken, in place of another random split.", where, whose)
                self._logged.add(where)
            loader = with_dataset(loader, dataset)
        if name != TRAIN and self.record is not None and name not in self.record.evaluation:
            _refuse_trained(dataset, self.record, where)
        return loader


def refuse_other_data(record: FitRecord, loader: DataLoader[Batch], checkpoint: str) -> None:
    """Checks that the training data are those that a checkpoint was fitted on.

    Args:
        record: Record in the checkpoint.
        loader: Training loader of the present data.
        checkpoint: Name of the checkpoint in messages.

    Raises:
        InputError: If they are other data, or the fit did not train on each sample once an epoch.
    """
    refuse_partial(loader, record.limit_train_batches, record.overfit_batches, record.reload_every_n_epochs)
    if record.fingerprint is None:
        log.warning(
            "the training data of %s are unverified: their samples change at each read, by a random generator of their "
            "own.",
            checkpoint,
        )
        return
    dataset = training_dataset(loader)
    now = content_fingerprint(loader, record.rows_read)[0] if len(dataset) == record.n else None
    if now != record.fingerprint:
        raise InputError(
            f"The training data are not those the checkpoint {checkpoint} was fitted on.\n"
            f"  Now: {len(dataset)} samples of {_described(behind_of(dataset))}, content SHA-256 {str(now)[:16]}...; "
            f"at the fit: {record.n} samples of {_described(record.behind)}, {record.fingerprint[:16]}...\n"
            "  Give the same data, or fit again."
        )
    log.info(
        "training data: those of the fit (content of %s of %d samples, and the rows of each Subset).",
        "all" if record.rows_read == record.n else record.rows_read,
        record.n,
    )


def _refuse_trained(dataset: MapDataset, record: FitRecord, where: str) -> None:
    """Checks that a random split has not dealt rows of the fit's training set to the tests.

    Raises:
        InputError: If it has.
    """
    now = subset_rows(dataset)
    if len(now) != 1 or len(record.subsets) != 1 or behind_of(dataset) != record.behind:
        return
    trained = int(torch.isin(now[0], record.subsets[0]).sum())
    if trained:
        raise InputError(
            f"{where}: {trained} of {len(now[0])} samples are among those trained on: the split is another one than "
            "that of the fit, whose checkpoint records the rows of the training set and not of this one.\n"
            "  Give --seed_everything of the fit, or a generator in random_split."
        )


def _with_rows(dataset: MapDataset, now: tuple[Rows, ...], held: tuple[Rows, ...], where: str) -> MapDataset:
    why = f"it has {_sizes(now)}, the fit had {_sizes(held)}"
    if [len(rows) for rows in now] == [len(rows) for rows in held]:
        try:
            return with_rows(dataset, held)
        except ValueError as error:
            why = str(error)
    raise InputError(
        f"{where}: the rows of the fit cannot be applied to these data: {why}.\n"
        "  Give the data of the fit with the same settings, or fit again."
    )


def _sizes(rows: tuple[Rows, ...]) -> str:
    return f"Subsets of {[len(one) for one in rows]} rows" if rows else "no Subset"


def _described(behind: tuple[tuple[str, int], ...]) -> str:
    return " and ".join(f"{name} ({size} rows)" for name, size in behind)
