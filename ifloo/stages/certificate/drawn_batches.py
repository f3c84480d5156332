"""Batches of the user's own training loader, with each sample read once."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch.utils.data import DataLoader

from ifloo.objective.batches import Batch, MapDataset, fetch_samples
from ifloo.objective.loaders import first_draw_reads
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
    dataset, _ = first_draw_reads(loader)
    with undisturbed_with(loader.sampler, loader.batch_sampler, loader.generator, dataset):
        torch.manual_seed(SEED)
        rows = [list(batch)[:limit] for batch in _spread(_batches(loader), count)]
        if rows[-1] and (len(rows) > 1 or len(rows[0]) < len(dataset)) and _in_order(rows[0]):
            size = len(rows[0])
            drawn = torch.randperm(len(dataset))[:size] if size <= len(dataset) else torch.arange(len(dataset))
            rows[-1 if len(rows) > 1 else len(rows) :] = [drawn.tolist()]
        kept = [tuple(batch) for batch in rows if batch]
        source = SampleSource.of(loader)
        return DrawnBatches(tuple(kept), tuple(source.read(batch) for batch in kept), source.collate)


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


@dataclass(frozen=True)
class SampleSource:
    """Dataset of a loader, sample by sample.

    Attributes:
        dataset: The user's dataset.
        collate: Function that makes a batch of samples as `read` returns them.
        by_position: Whether a sample is its position, because the dataset returns whole batches only.
    """

    dataset: MapDataset
    collate: CollateSamples
    by_position: bool

    @classmethod
    def of(cls, loader: DataLoader[Batch]) -> SampleSource:
        """Finds how the dataset of a loader is read."""
        dataset, collate = first_draw_reads(loader)
        if loader.batch_sampler is None or isinstance(fetch_samples(dataset, [0]), list):
            return cls(dataset, lambda samples: collate(list(samples)), False)
        return cls(dataset, lambda rows: collate(fetch_samples(dataset, list(rows))), True)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, rows: Sequence[int]) -> Samples:
        """Reads the samples at these positions, each once."""
        return list(rows) if self.by_position else [self.dataset[row] for row in rows]
