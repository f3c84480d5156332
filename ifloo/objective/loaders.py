"""Loaders of the training data: in a fixed order for the sums of J, and with an id for every sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from dataclasses import replace
from typing import TypeAlias

import torch
from torch import Tensor
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
from ifloo.objective.singles import CollateSingles

Collate: TypeAlias = Callable[..., object]  # (result of `fetch_samples`) -> batch


class _Positioned(Dataset[object]):
    """A dataset that returns samples together with their positions."""

    def __init__(self, dataset: MapDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, rows: Sequence[int]) -> tuple[object, list[int]]:
        return fetch_samples(self.dataset, rows), list(rows)


class _Collate:
    """The collate function for `_Positioned`: it keeps the positions beside the batch."""

    def __init__(self, collate: Collate) -> None:
        self.collate = collate

    def __call__(self, drawn: tuple[object, list[int]]) -> Identified:
        samples, rows = drawn
        return Identified(self.collate(samples), torch.tensor(rows))


def identified(loader: DataLoader[Batch]) -> DataLoader[Batch]:
    """Returns the loader itself if its batches carry ids, or else one that yields them as `Identified`."""
    dataset = samples_behind(loader)
    first = loader.collate_fn(fetch_samples(dataset, [0]))  # type: ignore[arg-type]  # a list of samples or the result of __getitems__
    if sample_ids(first) is not None or loader.batch_sampler is None:
        return loader
    return DataLoader(
        _Positioned(dataset),
        batch_sampler=loader.batch_sampler,
        collate_fn=_Collate(loader.collate_fn),  # type: ignore[arg-type]  # takes the result of `_Positioned.__getitems__`
        num_workers=loader.num_workers,
    )


class _CollateWeighted:
    """The collate function for `_Positioned` that puts the ids and factors of samples beside their batch."""

    def __init__(self, collate: Collate, ids: Tensor, factors: Tensor) -> None:
        self.collate, self.ids, self.factors = collate, ids, factors

    def __call__(self, drawn: tuple[object, list[int]]) -> Identified:
        samples, rows = drawn
        return Identified(self.collate(samples), self.ids[rows], self.factors[rows])


def weighted(loader: DataLoader[Batch], ids: Tensor, factors: Tensor) -> DataLoader[Batch]:
    """Returns a loader whose batches carry the factor n·c_i of each sample, for J = Σ_i c_i ℓ_i.

    Args:
        loader: Loader of the training data in order, such as that of a `TrainingData`.
        ids: Id of each sample, `[n]`.
        factors: Factor of each sample, `[n]`.
    """
    collate = loader.collate_fn
    if isinstance(collate, CollateSingles):  # a step on a whole batch has the weights, so that sums can be taken of it
        collate = replace(collate, with_whole=True)
    return DataLoader(
        _Positioned(samples_behind(loader)),
        batch_size=loader.batch_size,
        collate_fn=_CollateWeighted(collate, ids.cpu(), factors.cpu()),
        num_workers=loader.num_workers,
    )


class _Separately(Dataset[object]):
    """A dataset that returns its samples one by one, each in the form that the user's collate function takes."""

    def __init__(self, dataset: MapDataset, batched: bool) -> None:
        self.dataset, self.batched = dataset, batched

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, rows: Sequence[int]) -> list[object]:
        if not self.batched:  # a loader of batch_size=None: each item is a batch
            return [self.dataset[i] for i in rows]
        return [fetch_samples(self.dataset, [i]) for i in rows]


def separately(loader: DataLoader[Batch], with_whole: bool) -> DataLoader[Batch]:
    """Returns a loader of `Singles`: each sample as the batch of one that the user's dataset and collate function make.

    Args:
        loader: Training loader.
        with_whole: Whether the samples of each batch are also collated into one.
    """
    dataset, collate = unwrap_loader(loader)
    batched = loader.batch_sampler is not None
    return DataLoader(
        _Separately(dataset, batched),
        batch_size=loader.batch_size or 1,
        collate_fn=CollateSingles(collate, with_whole and batched),
        num_workers=loader.num_workers,
    )


def unwrap_loader(loader: DataLoader[Batch]) -> tuple[MapDataset, Collate]:
    """Returns the user's own dataset and collate function of a loader, without the wrappers of `identified`."""
    dataset = samples_behind(loader)
    if isinstance(dataset, _Positioned) and isinstance(loader.collate_fn, _Collate):
        return dataset.dataset, loader.collate_fn.collate
    return dataset, loader.collate_fn


def sample_count(loader: DataLoader[Batch]) -> int:
    """Returns n, the number of samples in the dataset of a loader.

    Raises:
        InputError: The dataset has no length or no samples by position.
    """
    return len(samples_behind(loader))


def samples_behind(loader: DataLoader[Batch]) -> MapDataset:
    """Returns the dataset of a loader.

    Raises:
        InputError: The dataset has no length or no samples by position.
    """
    dataset: object = loader.dataset
    if not isinstance(dataset, IterableDataset) and isinstance(dataset, MapDataset):
        return dataset
    if isinstance(dataset, IterableDataset):
        what, remedy = "an IterableDataset", "Give a dataset whose __getitem__ returns the sample at a position."
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
    """Returns a loader of the same dataset in its own order, each sample once, for scoring and the sums of J.

    Args:
        loader: Training loader.
        size: Number of samples per batch.
        shard: Positions of the samples to load, such as the share of one process; None for all.

    Raises:
        InputError: The dataset is iterable, so that its order and length are unknown; the sampler draws only part of
            the data or some of it twice, so that the fit has another objective; or the dataset is empty.
    """
    _refuse_partial(loader)
    dataset, collate = unwrap_loader(loader)
    chosen = dataset if shard is None else Subset(dataset, range(*shard.indices(len(dataset))))  # type: ignore[arg-type]
    return DataLoader(
        chosen,  # type: ignore[arg-type]  # typed as Dataset; anything with a length and items works
        batch_size=max(1, min(size, len(chosen))),
        shuffle=False,
        collate_fn=collate,
        num_workers=loader.num_workers,
    )
