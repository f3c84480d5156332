"""Training data held to those of the fit: the rows of its `Subset`s are applied, and the content is compared."""

from __future__ import annotations

import logging

import torch
from torch.utils.data import DataLoader

from ifloo.data.fit_record import FitRecord, behind_of, content_digest, content_fingerprint, spread
from ifloo.data.subset_rows import Rows, leaf_rows, same_rows, subset_rows, with_rows
from ifloo.errors import InputError
from ifloo.objective.batches import Batch, MapDataset
from ifloo.objective.loaders import training_dataset, with_dataset
from ifloo.objective.sampling import refuse_partial
from ifloo.objective.seeded_draws import scored_reads

log = logging.getLogger(__name__)
TRAIN = "train"
ROWS_COMPARED = 8  # samples by which two datasets of one class and size are compared


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
            name: `train`, `val` or `test`; of several loaders with the name or index of one, as `val.0`.
            where: Name of the loader in messages.

        Raises:
            InputError: If the rows cannot be applied.
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
        return loader

    def records(self, name: str) -> bool:
        """Whether the rows of a loader are those that the fit recorded, or there is no record of a fit."""
        return self.record is None or name == TRAIN or name in self.record.evaluation


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


def refuse_trained(tests: DataLoader[Batch], training: DataLoader[Batch], where: str) -> None:
    """Checks that a random split has not dealt rows of the fit's training set to the tests.

    Args:
        tests: Loader of the tests, whose rows the fit does not record.
        training: Training loader, with the rows of the fit.
        where: Name of the loader of the tests in messages.

    Raises:
        InputError: If it has.
    """
    dataset, trained_on = training_dataset(tests), training_dataset(training)
    if not subset_rows(dataset) or not subset_rows(trained_on):
        return  # whole data sets are no split
    trained = 0
    for leaf, rows in leaf_rows(dataset):
        same = [theirs for other, theirs in leaf_rows(trained_on) if _same_leaf(leaf, other)]
        if same:
            trained += int(torch.isin(rows, torch.cat(same)).sum())
    if trained:
        raise InputError(
            f"{where}: {trained} of {len(dataset)} samples are among those trained on: the split is another one than "
            "that of the fit, whose checkpoint records the rows of the training set and not of this one.\n"
            "  Give the seed of the fit (--seed_everything), or a generator in random_split. "
            "A fit with InfluenceCallback, or by `ifloo fit`, records its split."
        )


def _same_leaf(a: object, b: object) -> bool:
    """Whether two datasets hold the same samples: they are one object, or of one class and size with equal tensors."""
    if a is b:
        return True
    if behind_of(a) != behind_of(b):
        return False
    if not isinstance(a, MapDataset) or not isinstance(b, MapDataset):
        return True
    rows = spread(len(a), ROWS_COMPARED)
    try:
        first, second, again = (content_digest(*scored_reads(one, list), rows) for one in (a, b, a))
    except Exception as error:  # samples that hold no tensors, or of which the user's code reads none
        log.debug("two datasets are taken as one: %s", error)
        return True
    return first == second or first != again  # samples that differ at each read tell nothing


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
