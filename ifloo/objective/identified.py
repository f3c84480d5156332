"""Training batches that carry no ids, given the position in the dataset as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ifloo.objective.batches import Batch, sample_ids


class Identified(NamedTuple):
    """A batch as the loader made it, and the positions of its samples in the dataset."""

    batch: Batch
    positions: Int[Tensor, " b"]


class _Positioned(Dataset[Any]):
    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, rows: Sequence[int]) -> tuple[Any, list[int]]:
        fetch = getattr(self.dataset, "__getitems__", None)
        return (fetch(rows) if fetch else [self.dataset[i] for i in rows]), list(rows)


class _Collate:
    def __init__(self, collate: Any) -> None:
        self.collate = collate

    def __call__(self, fetched: tuple[Any, list[int]]) -> Identified:
        samples, rows = fetched
        return Identified(self.collate(samples), torch.tensor(rows))


def identified(loader: DataLoader) -> DataLoader:
    """The loader itself if its batches carry ids, else one of the same batches as `Identified`."""
    fetch = getattr(loader.dataset, "__getitems__", None)
    first = loader.collate_fn(fetch([0]) if fetch else [loader.dataset[0]])
    if sample_ids(first) is not None or loader.batch_sampler is None:
        return loader
    return DataLoader(
        _Positioned(loader.dataset),
        batch_sampler=loader.batch_sampler,
        collate_fn=_Collate(loader.collate_fn),  # type: ignore[arg-type]
        num_workers=loader.num_workers,
    )
