"""Batches for the comparison with rows that a few drawn batches miss, such as those of a class of few samples.

The loss of a batch may weigh its samples by a value that each carries. A weight shows only in a batch that holds its
value next to another one. What all rows carry is read once, and rows of values that no drawn batch holds next to
others, the rarest first, are put into further batches of the same size.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import DataLoader

from ifloo.objective.batch_weights import TABLE, sample_keys
from ifloo.objective.batches import Batch
from ifloo.objective.seeded_draws import row_behind_subsets, tensors_in_memory
from ifloo.stages.certificate.drawn_batches import ROWS, SEED, DrawnBatches, SampleSource
from ifloo.stages.isolation import undisturbed_with

log = logging.getLogger(__name__)
READ = 20_000  # largest number of samples that are read for what they carry; tensors in memory are read whole
SECONDS = 5.0  # time after which no more of them are read
BATCHES = 4  # largest number of further batches


def with_rare_rows(loader: DataLoader[Batch], drawn: DrawnBatches) -> DrawnBatches:
    """Adds batches that hold rare rows, half of each, next to rows that were drawn; random states are restored.

    Args:
        loader: Training loader.
        drawn: Batches that were drawn from it; they are returned as they are if they hold every value.
    """
    size = len(drawn.rows[0]) if drawn.rows else 0
    if size < 2 or loader.batch_sampler is None:
        return drawn
    source = SampleSource.of(loader)
    with undisturbed_with(source.dataset):
        samples = _Samples(source, drawn)
        rare = rare_rows(_columns(source, samples), drawn.rows)
        share, most = size // 2, max(1, min(BATCHES, ROWS // size))
        groups = [rare[k : k + share] for k in range(0, len(rare), share)][:most]
        if not groups:
            return drawn
        pool = [row for batch in drawn.rows for row in batch]
        batches = [tuple([*group, *_spread(pool, group, size - len(group))]) for group in groups]
        read = tuple([samples.at(row) for row in batch] for batch in batches)
    return replace(drawn, rows=(*drawn.rows, *batches), samples=(*drawn.samples, *read))


@dataclass(frozen=True)
class Column:
    """One value that a weight may depend on, of all rows that were read.

    Attributes:
        rows: Positions in the dataset.
        values: Value of each of these rows.
    """

    rows: Int[Tensor, " m"]
    values: Float[Tensor, " m"]


def rare_rows(columns: Iterable[Column], batches: Sequence[Sequence[int]]) -> list[int]:
    """Returns one row for each value that no batch holds next to another one, that of the rarest value first.

    Of a value that differs between most rows, such as the target of a regression, the ends of its range count.

    Args:
        columns: What the rows carry.
        batches: Rows of each batch.
    """
    missing = [one for column in columns for one in _missing(column, batches)]
    return list(dict.fromkeys(row for _, row in sorted(missing)))


def _missing(column: Column, batches: Sequence[Sequence[int]]) -> Iterator[tuple[int, int]]:
    """Yields the number of rows with each value that is missing, and the first of them."""
    values, inverse, counts = column.values.unique(return_inverse=True, return_counts=True)
    if len(values) < 2:
        return
    seen: set[int] = set()
    for batch in batches:
        held = set(inverse[torch.isin(column.rows, torch.tensor(batch))].tolist())
        if len(held) > 1:
            seen |= held
    few = range(len(values)) if len(values) <= TABLE else (0, len(values) - 1)
    for k in few:
        if k not in seen:
            yield int(counts[k]), int(column.rows[int((inverse == k).nonzero()[0])])


def _spread(pool: Sequence[int], without: Sequence[int], count: int) -> list[int]:
    """Returns rows at equal distances in the pool, each once if there are enough."""
    free = [row for row in dict.fromkeys(pool) if row not in without] or list(pool)
    return [free[k * len(free) // count] for k in range(count)]


class _Samples:
    """Samples of a source, of which those that were drawn are not read again."""

    def __init__(self, source: SampleSource, drawn: DrawnBatches) -> None:
        self.source = source
        self._kept: dict[int, object] = {}
        for rows, samples in zip(drawn.rows, drawn.samples, strict=True):
            self._kept |= dict(zip(rows, samples, strict=True))

    def at(self, row: int) -> object:
        """Returns a sample."""
        return self._kept[row] if row in self._kept else self.source.read([row])[0]

    def keys(self, row: int) -> Mapping[str, float]:
        """Returns what the weight of a sample may depend on."""
        return sample_keys(self.source.collate([self.at(row)]))


def _columns(source: SampleSource, samples: _Samples) -> list[Column]:
    memory = tensors_in_memory(source.dataset)
    if memory is None or any(_counted(x) for x in memory.tensors):
        return _columns_of_samples(len(source), samples)
    rows = torch.arange(len(source))
    behind = rows
    if memory is not source.dataset:
        behind = torch.tensor([row_behind_subsets(source.dataset, row) for row in range(len(source))])
    single = [x for x in memory.tensors if x.numel() == len(x) and not x.is_complex()]
    return [Column(rows, x.detach().cpu().flatten()[behind].double()) for x in single]


def _counted(x: Tensor) -> bool:
    """Whether a sample's weight may depend on a number of entries of its row, as `sample_keys` counts them."""
    if x.numel() == len(x) or x.is_complex():
        return False
    return not x.is_floating_point() or bool(((x[:1000] == 0) | (x[:1000] == 1)).all())


def _columns_of_samples(n: int, samples: _Samples) -> list[Column]:
    """Reads samples one by one, in random order, up to a number and a time."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(SEED))[:READ].tolist()
    until = time.monotonic() + SECONDS
    found: dict[str, list[tuple[int, float]]] = {}
    for row in order:
        if time.monotonic() > until:
            break
        try:
            keys = samples.keys(row)
        except Exception as error:  # one of the user's data set; the checks of the data refuse such a sample
            log.info("sample %d cannot be read for what it carries: %s", row, error)
            continue
        for name, value in keys.items():
            found.setdefault(name, []).append((row, value))
    return [
        Column(torch.tensor([row for row, _ in column]), torch.tensor([v for _, v in column], dtype=torch.float64))
        for column in found.values()
    ]
