"""Loaders of the training data: in order for the sums of J, and with an id for every sample."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from typing import Any

import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
)

from ifloo.errors import InputError
from ifloo.objective.batches import Identified, fetched, sample_ids


class _Positioned(Dataset[Any]):
    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, rows: Sequence[int]) -> tuple[Any, list[int]]:
        return fetched(self.dataset, rows), list(rows)


class _Collate:
    def __init__(self, collate: Any) -> None:
        self.collate = collate

    def __call__(self, drawn: tuple[Any, list[int]]) -> Identified:
        samples, rows = drawn
        return Identified(self.collate(samples), torch.tensor(rows))


def identified(loader: DataLoader) -> DataLoader:
    """The loader itself if its batches carry ids, else one of the same batches as `Identified`."""
    first = loader.collate_fn(fetched(loader.dataset, [0]))
    if sample_ids(first) is not None or loader.batch_sampler is None:
        return loader
    return DataLoader(
        _Positioned(loader.dataset),
        batch_sampler=loader.batch_sampler,
        collate_fn=_Collate(loader.collate_fn),  # type: ignore[arg-type]
        num_workers=loader.num_workers,
    )


def as_given(loader: DataLoader) -> tuple[Any, Any]:
    """Dataset and collate function of a loader as its user gave them, without what `identified` wrapped around them."""
    if isinstance(loader.dataset, _Positioned):
        return loader.dataset.dataset, loader.collate_fn.collate  # type: ignore[union-attr]
    return loader.dataset, loader.collate_fn


def sample_count(loader: DataLoader) -> int:
    """Gives n, the number of samples in the dataset of a loader.

    Raises:
        InputError: the dataset has no length.
    """
    if not isinstance(loader.dataset, Sized):
        raise InputError(
            f"Attribution needs a map-style dataset (with __len__ and __getitem__); got "
            f"{type(loader.dataset).__name__}, which has no __len__.\n  Let __len__ give the number of its samples."
        )
    return len(loader.dataset)


def _refuse_partial(loader: DataLoader) -> None:
    if isinstance(loader.dataset, IterableDataset):
        return
    if not isinstance(loader.sampler, (SequentialSampler, RandomSampler, DistributedSampler)):
        raise InputError(
            f"The training loader draws with {type(loader.sampler).__name__}; J is the mean over every sample once.\n"
            "  Use shuffle=True or False; for a part of the data wrap the dataset (torch.utils.data.Subset)."
        )
    if sample_count(loader) == 0:
        raise InputError("The training data hold no sample.")


def sequential(loader: DataLoader, size: int, shard: slice | None = None) -> DataLoader:
    """The loader's dataset in its own order, each sample once, `size` at a time: what scoring and J run over.

    With `shard` only the samples at these positions: the share of one process among several.

    Raises:
        InputError: an iterable dataset has no order and no length to rely on; a sampler that trains on part of the
            data, or some of it twice, has another objective; there is no sample.
    """
    _refuse_partial(loader)
    if isinstance(loader.dataset, IterableDataset):
        raise InputError(
            f"Attribution needs a map-style dataset (with __len__ and __getitem__); got "
            f"{type(loader.dataset).__name__}, an IterableDataset.\n  Give each sample a position to be found by."
        )
    dataset, collate = as_given(loader)
    if shard is not None:
        dataset = Subset(dataset, range(*shard.indices(len(dataset))))
    return DataLoader(
        dataset,
        batch_size=max(1, min(size, len(dataset))),
        shuffle=False,
        collate_fn=collate,
        num_workers=loader.num_workers,
    )
