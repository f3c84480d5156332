"""Batches of the user's own training loader, with each sample read once."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch.utils.data import DataLoader

from ifloo.objective.batches import Batch, MapDataset, fetch_samples
from ifloo.objective.loaders import unwrap_loader
from ifloo.objective.step_comparison import Samples
from ifloo.stages.isolation import undisturbed_with

CollateSamples: TypeAlias = Callable[[Samples], Batch]

ROWS = 256  # largest number of samples of a compared batch
PASSED = 1000  # batches of the loader that are drawn at most, most of them unread
SEED = 0


@dataclass(frozen=True)
class DrawnBatches:
    """Some batches of a loader.

    Attributes:
        rows: Positions in the dataset, for each batch.
        samples: Samples of each batch as the dataset returns them, each read once; their positions if the dataset
            returns whole batches only.
        collate: Function that makes a batch of samples.
    """

    rows: tuple[tuple[int, ...], ...]
    samples: tuple[Samples, ...]
    collate: CollateSamples


def drawn_batches(loader: DataLoader[Batch], count: int = 3, limit: int = ROWS) -> DrawnBatches:
    """Draws batches as a fit does: the first of an epoch and others up to its end; random states are restored.

    Where the loader goes through the data in order, the last one is drawn uniformly from all data: neighbours in sorted
    data have one class.

    Args:
        loader: Training loader.
        count: Number of batches.
        limit: Largest number of samples of a batch; a larger batch is cut.
    """
    dataset, collate = unwrap_loader(loader)
    with undisturbed_with(loader.sampler, loader.batch_sampler, loader.generator, dataset):
        torch.manual_seed(SEED)
        rows = [list(batch)[:limit] for batch in _spread(_batches(loader), count)]
        if rows[-1] and (len(rows) > 1 or len(rows[0]) < len(dataset)) and _in_order(rows[0]):
            size = len(rows[0])
            drawn = torch.randperm(len(dataset))[:size] if size <= len(dataset) else torch.arange(len(dataset))
            rows[-1 if len(rows) > 1 else len(rows) :] = [drawn.tolist()]
        kept = [tuple(batch) for batch in rows if batch]
        read, made = _reader(dataset, collate, loader.batch_sampler is None)
        return DrawnBatches(tuple(kept), tuple(read(batch) for batch in kept), made)


def _batches(loader: DataLoader[Batch]) -> Iterable[Sequence[int]]:
    if loader.batch_sampler is not None:
        return loader.batch_sampler
    return ([row] for row in loader.sampler)


def _spread(batches: Iterable[Sequence[int]], count: int) -> list[Sequence[int]]:
    """Returns the first of the batches and others at equal distances; a short last one counts if it is the only one."""
    known = list(itertools.islice(batches, PASSED))
    if len(known) > 1 and len(known[-1]) < len(known[0]) / 2:
        known.pop()
    last = len(known) - 1
    return [known[k] for k in sorted({k * last // max(count - 1, 1) for k in range(count)})]


def _in_order(rows: Sequence[int]) -> bool:
    return list(rows) == list(range(rows[0], rows[0] + len(rows)))


def _reader(
    dataset: MapDataset, collate: Callable[..., Batch], unbatched: bool
) -> tuple[Callable[[Sequence[int]], Samples], CollateSamples]:
    """Returns a function that reads samples once, and one that collates any of them."""
    if unbatched:  # each item of the dataset is a batch already
        return lambda rows: [dataset[i] for i in rows], lambda samples: collate(samples[0])
    if isinstance(fetch_samples(dataset, [0]), list):
        return lambda rows: [dataset[i] for i in rows], lambda samples: collate(list(samples))
    return list, lambda rows: collate(fetch_samples(dataset, rows))  # type: ignore[arg-type]  # these samples are rows
