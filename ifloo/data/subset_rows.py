"""Rows that the `Subset`s within a dataset choose: read from one dataset, applied to another."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence, Sized

import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset

from ifloo.objective.batches import MapDataset

Rows = Int64[Tensor, " n"]


def subset_rows(dataset: object) -> tuple[Rows, ...]:
    """Returns the rows of each `Subset` within a dataset, outermost first; wrappers around a `Subset` are searched."""
    return tuple(torch.as_tensor(list(one.indices), dtype=torch.int64) for one in _subsets(dataset))


def same_rows(a: Sequence[Rows], b: Sequence[Rows]) -> bool:
    """Whether the `Subset`s of two datasets choose the same rows."""
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def datasets_behind(dataset: object) -> list[object]:
    """Returns the datasets that hold no other, in order: those that the samples come from."""
    held = [one for _, one in _held(dataset)]
    return [leaf for one in held for leaf in datasets_behind(one)] if held else [dataset]


def leaf_rows(dataset: MapDataset) -> list[tuple[object, Rows]]:
    """Returns each dataset that the samples come from, with the rows of it that the `Subset`s leave."""
    return list(_reached(dataset, torch.arange(len(dataset))))


def with_rows(dataset: MapDataset, rows: Sequence[Rows]) -> MapDataset:
    """Returns the dataset with other rows in its `Subset`s, in the order of `subset_rows`; the given one stays.

    Raises:
        ValueError: The number of `Subset`s is another, or a row does not exist.
    """
    if len(rows) != len(list(_subsets(dataset))):
        raise ValueError(f"it holds {len(list(_subsets(dataset)))} Subset(s), not {len(rows)}")
    changed = _rebuilt(dataset, iter(rows))
    assert isinstance(changed, MapDataset)
    return changed


def _subsets(dataset: object) -> Iterator[Subset[object]]:
    if isinstance(dataset, Subset):
        yield dataset
    for _, one in _held(dataset):
        yield from _subsets(one)


def _reached(dataset: object, rows: Rows) -> Iterator[tuple[object, Rows]]:
    """Yields the same for some rows of a dataset; a wrapper of another length may read all rows of what it holds."""
    if isinstance(dataset, Subset):
        chosen = torch.as_tensor(list(dataset.indices), dtype=torch.int64)[rows]
        yield from _reached(dataset.dataset, chosen)
    elif isinstance(dataset, ConcatDataset):
        start = 0
        for one, end in zip(dataset.datasets, dataset.cumulative_sizes, strict=True):
            yield from _reached(one, rows[(rows >= start) & (rows < end)] - start)
            start = end
    elif held := [one for _, one in _held(dataset) if isinstance(one, Sized)]:
        own = len(dataset) if isinstance(dataset, Sized) else None
        for inner in held:
            yield from _reached(inner, rows if len(inner) == own else torch.arange(len(inner)))
    else:
        yield dataset, rows


def _rebuilt(dataset: object, rows: Iterator[Rows]) -> object:
    own = next(rows) if isinstance(dataset, Subset) else None
    held = _held(dataset)
    if own is None and not held:
        return dataset
    changed = copy.copy(dataset)
    if isinstance(changed, ConcatDataset):  # holds lengths too, which its constructor computes
        return ConcatDataset([_rebuilt(one, rows) for _, one in held])  # type: ignore[misc]  # datasets, as before
    for name, one in held:
        vars(changed)[name] = _rebuilt(one, rows)
    if isinstance(changed, Subset) and own is not None:
        size = len(changed.dataset)  # type: ignore[arg-type]  # a Subset is of a dataset with a length
        if len(own) and (int(own.min()) < 0 or int(own.max()) >= size):
            raise ValueError(f"it has {size} rows, and rows up to {int(own.max())} were trained on")
        changed.indices = own.tolist()
    return changed


def _held(dataset: object) -> list[tuple[str, object]]:
    """Returns the datasets that a dataset holds as attributes, by name, each once."""
    if isinstance(dataset, ConcatDataset):
        return [("datasets", one) for one in dataset.datasets]
    if not isinstance(dataset, Dataset) or isinstance(dataset, IterableDataset):
        return []
    return [(name, one) for name, one in vars(dataset).items() if isinstance(one, Dataset)]
