"""Loaders of the training data: in order for the sums of J, and with an id for every sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from typing import TypeAlias

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
from ifloo.objective.batches import Batch, Identified, MapDataset, fetch_samples, sample_ids

Collate: TypeAlias = Callable[..., object]  # (samples as `fetched` gives them) -> batch


class _Positioned(Dataset[object]):
    def __init__(self, dataset: MapDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, rows: Sequence[int]) -> tuple[object, list[int]]:
        return fetch_samples(self.dataset, rows), list(rows)


class _Collate:
    def __init__(self, collate: Collate) -> None:
        self.collate = collate

    def __call__(self, drawn: tuple[object, list[int]]) -> Identified:
        samples, rows = drawn
        return Identified(self.collate(samples), torch.tensor(rows))


def identified(loader: DataLoader[Batch]) -> DataLoader[Batch]:
    """The loader itself if its batches carry ids, else one of the same batches as `Identified`."""
    dataset = samples_behind(loader)
    first = loader.collate_fn(fetch_samples(dataset, [0]))  # type: ignore[arg-type]  # lists, or what the set gives at once
    if sample_ids(first) is not None or loader.batch_sampler is None:
        return loader
    return DataLoader(
        _Positioned(dataset),
        batch_sampler=loader.batch_sampler,
        collate_fn=_Collate(loader.collate_fn),  # type: ignore[arg-type]  # of what `_Positioned` gives at once
        num_workers=loader.num_workers,
    )


def unwrap_loader(loader: DataLoader[Batch]) -> tuple[MapDataset, Collate]:
    """Dataset and collate function of a loader as its user gave them, without what `identified` wrapped around them."""
    dataset = samples_behind(loader)
    if isinstance(dataset, _Positioned) and isinstance(loader.collate_fn, _Collate):
        return dataset.dataset, loader.collate_fn.collate
    return dataset, loader.collate_fn


def sample_count(loader: DataLoader[Batch]) -> int:
    """Gives n, the number of samples in the dataset of a loader.

    Raises:
        InputError: the dataset has no length or no samples by position.
    """
    return len(samples_behind(loader))


def samples_behind(loader: DataLoader[Batch]) -> MapDataset:
    """The dataset of a loader.

    Raises:
        InputError: it has no length or no samples by position.
    """
    dataset: object = loader.dataset
    if not isinstance(dataset, IterableDataset) and isinstance(dataset, MapDataset):
        return dataset
    if isinstance(dataset, IterableDataset):
        what, remedy = "an IterableDataset", "Give each sample a position to be found by."
    elif isinstance(dataset, Sized):
        what, remedy = "which has no __getitem__", "Let __getitem__ give the sample at a position."
    else:
        what, remedy = "which has no __len__", "Let __len__ give the number of its samples."
    raise InputError(
        "Attribution needs a map-style dataset (with __len__ and __getitem__); got "
        f"{type(dataset).__name__}, {what}.\n  {remedy}"
    )


def _refuse_partial(loader: DataLoader[Batch]) -> None:
    if isinstance(loader.dataset, IterableDataset):
        return
    if not isinstance(loader.sampler, (SequentialSampler, RandomSampler, DistributedSampler)):
        raise InputError(
            f"The training loader draws with {type(loader.sampler).__name__}; J is the mean over every sample once.\n"
            "  Use shuffle=True or False; for a part of the data wrap the dataset (torch.utils.data.Subset)."
        )
    if sample_count(loader) == 0:
        raise InputError("The training data hold no sample.")


def sequential(loader: DataLoader[Batch], size: int, shard: slice | None = None) -> DataLoader[Batch]:
    """The loader's dataset in its own order, each sample once, `size` at a time: what scoring and J run over.

    With `shard` only the samples at these positions: the share of one process among several.

    Raises:
        InputError: an iterable dataset has no order and no length to rely on; a sampler that trains on part of the
            data, or some of it twice, has another objective; there is no sample.
    """
    _refuse_partial(loader)
    dataset, collate = unwrap_loader(loader)
    chosen = dataset if shard is None else Subset(dataset, range(*shard.indices(len(dataset))))  # type: ignore[arg-type]
    return DataLoader(
        chosen,  # type: ignore[arg-type]  # torch asks for a Dataset and takes whatever has a length and items
        batch_size=max(1, min(size, len(chosen))),
        shuffle=False,
        collate_fn=collate,
        num_workers=loader.num_workers,
    )
