"""Record of the data that a fit trained on, for its checkpoint: later runs compare their data with it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ifloo.data.subset_rows import Rows, datasets_behind, subset_rows
from ifloo.errors import InputError
from ifloo.objective.batches import Batch, MapDataset, fetch_samples, tensors_of, without_ids
from ifloo.objective.epoch_batches import drawn_by
from ifloo.objective.loaders import own_dataset, training_dataset, unwrap_loader
from ifloo.objective.seeded_draws import Collate, bytes_of, row_behind_subsets, tensors_in_memory
from ifloo.objective.singles import first_draw

KEY = "ifloo_data"  # key of the record in a checkpoint
ROWS_READ = 256  # rows that the fingerprint reads of data that are not tensors in memory
TWICE = 16  # of these, the rows that are read twice


@dataclass(frozen=True)
class FitRecord:
    """Data that a fit trained on.

    Attributes:
        fingerprint: SHA-256 of the content of the samples; None where two reads of a sample differ although the
            generators of torch, numpy and Python are seeded.
        rows_read: Number of samples in the fingerprint, spread evenly; n where all are read.
        n: Number of training samples.
        behind: Class and length of each dataset that the samples come from.
        subsets: Rows of each `Subset` of the training set, outermost first.
        evaluation: The same of the other loaders, by their names: `val`, `test`.
        sampler: Class of the sampler that draws the training samples.
        limit_train_batches: Setting of the Trainer.
        overfit_batches: Setting of the Trainer.
        reload_every_n_epochs: Setting `reload_dataloaders_every_n_epochs` of the Trainer.
    """

    fingerprint: str | None
    rows_read: int
    n: int
    behind: tuple[tuple[str, int], ...]
    subsets: tuple[Rows, ...]
    evaluation: Mapping[str, tuple[Rows, ...]] = field(default_factory=dict)
    sampler: str = "SequentialSampler"
    limit_train_batches: int | float = 1.0
    overfit_batches: int | float = 0.0
    reload_every_n_epochs: int = 0

    @classmethod
    def of(
        cls,
        loader: DataLoader[Batch],
        evaluation: Mapping[str, DataLoader[Batch]] | None = None,
        limit_train_batches: int | float = 1.0,
        overfit_batches: int | float = 0.0,
        reload_every_n_epochs: int = 0,
    ) -> FitRecord:
        """Reads the record of a fit; random states are restored, and the loader is not changed.

        Args:
            loader: Training loader of the fit.
            evaluation: Loaders of validation and test samples, by the names `val` and `test`; only the rows of their
                `Subset`s are read.
            limit_train_batches: Setting of the Trainer.
            overfit_batches: Setting of the Trainer.
            reload_every_n_epochs: Setting `reload_dataloaders_every_n_epochs` of the Trainer.

        Raises:
            InputError: The dataset has no length or no samples by position.
        """
        dataset = training_dataset(loader)
        fingerprint, rows_read = content_fingerprint(loader)
        return cls(
            fingerprint,
            rows_read,
            len(dataset),
            behind_of(dataset),
            subset_rows(dataset),
            {name: subset_rows(own_dataset(one)) for name, one in (evaluation or {}).items()},
            type(drawn_by(loader)).__name__,
            limit_train_batches,
            overfit_batches,
            reload_every_n_epochs,
        )

    def record(self) -> dict[str, object]:
        """Returns the record as plain values and tensors, which `torch.load` reads with `weights_only=True`."""
        return {
            "fingerprint": self.fingerprint,
            "rows_read": self.rows_read,
            "n": self.n,
            "behind": [[name, size] for name, size in self.behind],
            "subsets": list(self.subsets),
            "evaluation": {name: list(rows) for name, rows in self.evaluation.items()},
            "sampler": self.sampler,
            "limit_train_batches": self.limit_train_batches,
            "overfit_batches": self.overfit_batches,
            "reload_every_n_epochs": self.reload_every_n_epochs,
        }

    @classmethod
    def read(cls, content: Mapping[str, object]) -> FitRecord | None:
        """Reads the record of a checkpoint; None where the checkpoint has none.

        Args:
            content: Content of the checkpoint, with the record under `KEY`.

        Raises:
            InputError: The record is damaged.
        """
        stored = content.get(KEY)
        if stored is None:
            return None
        try:
            return cls._read(_mapping(stored))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"The checkpoint's record of the training data ({KEY!r}) cannot be read: "
                f"{type(error).__name__}: {error}.\n  Remove this key from the checkpoint, or fit again."
            ) from error

    @classmethod
    def _read(cls, stored: Mapping[str, object]) -> FitRecord:
        return cls(
            fingerprint=_text(stored["fingerprint"]),
            rows_read=_whole(stored["rows_read"]),
            n=_whole(stored["n"]),
            behind=tuple((str(name), _whole(size)) for name, size in map(_items, _items(stored["behind"]))),
            subsets=_rows(stored["subsets"]),
            evaluation={name: _rows(rows) for name, rows in _mapping(stored["evaluation"]).items()},
            sampler=str(stored["sampler"]),
            limit_train_batches=_number(stored["limit_train_batches"]),
            overfit_batches=_number(stored["overfit_batches"]),
            reload_every_n_epochs=_whole(stored["reload_every_n_epochs"]),
        )


def content_fingerprint(loader: DataLoader[Batch], rows_read: int | None = None) -> tuple[str | None, int]:
    """Computes the SHA-256 of the samples of a loader, each as a batch of its own, and the number of samples read.

    Tensors in memory are read whole; of other data `ROWS_READ` rows, spread evenly, the first and the last included.
    Augmented samples are read under seeds of their own.

    Args:
        loader: Training loader.
        rows_read: Number of rows to read, in place of the default.

    Returns:
        None in place of the text where two reads of a sample differ.
    """
    dataset, collate = unwrap_loader(loader)
    n = len(dataset)
    if tensors_in_memory(dataset) is not None:
        return content_digest(dataset, collate, range(n)), n
    rows = spread(n, rows_read or ROWS_READ)
    if content_digest(dataset, collate, rows[:TWICE]) != content_digest(dataset, collate, rows[:TWICE]):
        return None, len(rows)
    return content_digest(dataset, collate, rows), len(rows)


def content_digest(dataset: MapDataset, collate: Collate, rows: Sequence[int]) -> str:
    """Computes the SHA-256 of some samples: of the tensors in memory, else of each collated alone, in its first draw.

    Args:
        dataset: Dataset with fixed reads.
        collate: Collate function of its loader.
        rows: Positions of the samples.
    """
    found = hashlib.sha256()
    if (tensors := tensors_in_memory(dataset)) is not None:
        behind = torch.tensor([row_behind_subsets(dataset, i) for i in rows], dtype=torch.int64)
        whole = torch.equal(behind, torch.arange(len(tensors)))
        for x in tensors.tensors:
            _add(found, x if whole else x[behind])
        return found.hexdigest()
    for i in rows:
        for x in tensors_of(first_draw(without_ids(collate(fetch_samples(dataset, [i]))))):
            _add(found, x)
    return found.hexdigest()


def spread(n: int, count: int) -> list[int]:
    """Returns at most `count` positions among n, evenly spread, the first and the last included."""
    return torch.linspace(0, n - 1, min(n, count)).round().long().unique().tolist() if n else []


def behind_of(dataset: object) -> tuple[tuple[str, int], ...]:
    """Returns class and length of each dataset that the samples of a dataset come from."""
    return tuple((type(one).__name__, len(one)) for one in datasets_behind(dataset))  # type: ignore[arg-type]


def _add(digest: hashlib._Hash, x: Tensor) -> None:
    digest.update(f"{x.dtype} {tuple(x.shape)}".encode())
    digest.update(bytes_of(x))


def _rows(stored: object) -> tuple[Rows, ...]:
    return tuple(torch.as_tensor(one, dtype=torch.int64) for one in _items(stored))


def _mapping(stored: object) -> Mapping[str, object]:
    if not isinstance(stored, Mapping):
        raise TypeError(f"a dict is expected, got {type(stored).__name__}")
    return stored


def _items(stored: object) -> Sequence[object]:
    if not isinstance(stored, (list, tuple)):
        raise TypeError(f"a list is expected, got {type(stored).__name__}")
    return stored


def _text(stored: object) -> str | None:
    return None if stored is None else str(stored)


def _whole(stored: object) -> int:
    if not isinstance(stored, int):
        raise TypeError(f"a whole number is expected, got {type(stored).__name__}")
    return stored


def _number(stored: object) -> int | float:
    if not isinstance(stored, (int, float)):
        raise TypeError(f"a number is expected, got {type(stored).__name__}")
    return stored
