"""Batches of an epoch of a fit, as a training loader draws them: shuffled, the same in each epoch, or followed.

A shuffle is described by the sizes of its batches. Batches in order are listed. A sampler of the user's is followed on
a copy; random states are restored.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sized
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, pairwise
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
)

from ifloo.objective.batch_samplers import SamplerBatches
from ifloo.objective.batches import Batch
from ifloo.objective.dealt_samplers import dealt_by, own_sampler, processes_of, take_rank
from ifloo.objective.drawn_shares import expected_shares
from ifloo.objective.randomness import undisturbed
from ifloo.objective.seeded_draws import seed_by, training_reads

Rows: TypeAlias = Int[Tensor, " b"]  # positions in the dataset
Sizes: TypeAlias = tuple[int, ...]  # of the parts of a batch that are drawn independently; most batches have one

DRAWN_MOST = 3  # a sampler is followed over this many draws a sample at most
TESTED = 10  # epochs whose shares are compared with those of as many others
CHANCE = 5.0  # correlation of shares by chance, in standard errors
LARGEST_CHANCE = 0.95  # the same for few samples
FOLLOWED = 2000  # epochs over which a random sampler is followed, of few data
FEWEST = 10  # the same of very many
DRAWS = 4_000_000  # draws over all of these epochs, where that is possible


@runtime_checkable
class _TellsEpoch(Protocol):
    """A sampler that a Trainer tells the epoch."""

    def set_epoch(self, epoch: int, /) -> object: ...


class Batches(NamedTuple):
    """Batches of an epoch.

    Attributes:
        rows: Positions in the dataset, batch after batch.
        sizes: Number of rows of each batch.
    """

    rows: Int[Tensor, " d"]
    sizes: Int[Tensor, " k"]

    def shares(self, n: int, weights: Float[Tensor, " n"] | None) -> Float[Tensor, " n"]:
        """Returns the mean over the batches of a sample's share in the weight of the batch."""
        count, rows = len(self.sizes), self.rows
        of_batch = torch.repeat_interleave(self.sizes)
        a = torch.ones(len(rows), dtype=torch.float64) if weights is None else weights.double().cpu()[rows]
        totals = torch.zeros(count, dtype=torch.float64).index_add(0, of_batch, a)[of_batch]
        found = torch.where(totals > 0, a / torch.where(totals > 0, totals, 1.0), 0.0) / count
        return torch.zeros(n, dtype=torch.float64).index_add(0, rows, found)


@dataclass(frozen=True)
class Shuffled:
    """An epoch in which samples come in random order, each equally often.

    Attributes:
        n: Number of samples of the dataset.
        batches: Number of batches by the sizes of their parts.
        rows: Positions that are drawn; None for all.
    """

    n: int
    batches: tuple[tuple[Sizes, int], ...]
    rows: Rows | None = None

    @property
    def count(self) -> int:
        """Number of batches."""
        return sum(count for _, count in self.batches)

    @property
    def drawn(self) -> int:
        """Number of samples that are drawn."""
        return self.n if self.rows is None else len(self.rows)

    def shares(self, weights: Float[Tensor, " n"] | None) -> Float[Tensor, " n"]:
        """Returns the mean over batches of a sample's share in the weight of the batch, in expectation.

        Args:
            weights: Relative weights a_i of all samples; None if they are equal.
        """
        found = torch.full((self.drawn,), 1 / self.drawn, dtype=torch.float64)
        if weights is not None:
            own = weights.double() if self.rows is None else weights.double()[self.rows]
            found = sum((count * expected_shares(own, sizes) for sizes, count in self.batches), torch.zeros_like(found))
            found = found / self.count
        if self.rows is None:
            return found
        return torch.zeros(self.n, dtype=torch.float64).index_add(0, self.rows, found)

    @property
    def text(self) -> str:
        """Noun phrase for the batches; empty if each epoch is one batch."""
        largest = max(sum(sizes) for sizes, _ in self.batches)
        return "" if self.count == 1 and largest == self.drawn else f"in expectation over shuffled batches of {largest}"


@dataclass(frozen=True)
class Repeated:
    """An epoch whose batches are the same in every epoch.

    Attributes:
        n: Number of samples of the dataset.
        batches: Batches of each epoch.
    """

    n: int
    batches: Batches

    @property
    def count(self) -> int:
        """Number of batches."""
        return len(self.batches.sizes)

    def shares(self, weights: Float[Tensor, " n"] | None) -> Float[Tensor, " n"]:
        """Returns the mean over batches of a sample's share in the weight of the batch.

        Args:
            weights: Relative weights a_i of all samples; None if they are equal.
        """
        return self.batches.shares(self.n, weights)

    @property
    def text(self) -> str:
        """Noun phrase for the batches; empty if each epoch is one batch of all."""
        sizes = self.batches.sizes.tolist()
        if sizes == [self.n]:
            return ""
        few = f", the smallest of {min(sizes)}" if min(sizes) < max(sizes) else ""
        return f"over the same {len(sizes)} batches of {max(sizes)} in each epoch{few}"


@dataclass(frozen=True)
class Followed:
    """Epochs of a random sampler of the user's, which are known by following it.

    Attributes:
        n: Number of samples of the dataset.
        name: Class of the sampler.
        epochs: Function that yields the batches of one epoch after the other.
        count: Number of batches of the first epoch.
    """

    n: int
    name: str
    epochs: Callable[[], Generator[Batches, None, None]]
    count: int

    def shares(self, weights: Float[Tensor, " n"] | None) -> Float[Tensor, " n"]:
        """Returns the mean over batches of a sample's share in the weight of the batch, over the epochs followed.

        Args:
            weights: Relative weights a_i of all samples; None if they are equal. Samples that the sampler treats alike
                have 1/n then, and otherwise the mean of those of their weight.
        """
        if weights is None and self.alike:
            return torch.full((self.n,), 1 / self.n, dtype=torch.float64)
        found = self._mean(weights)
        if weights is None or not self.alike:
            return found
        group = weights.double().cpu().unique(return_inverse=True)[1]
        sums = torch.zeros(int(group.max()) + 1, dtype=torch.float64).index_add(0, group, found)
        mean: Tensor = (sums / group.bincount())[group]
        return mean

    @cached_property
    def alike(self) -> bool:
        """Whether the sampler treats all samples alike, as far as epochs tell.

        Shares of samples that differ by chance alone are uncorrelated between some epochs and others; those of samples
        that it never draws, or always puts into the short batch, are the same in both.
        """
        with closing(self.epochs()) as epochs:
            each = torch.stack([batches.shares(self.n, None) for batches in islice(epochs, 2 * TESTED)])
        one, other = each[:TESTED].mean(0) - 1 / self.n, each[TESTED:].mean(0) - 1 / self.n
        length = float(one.norm() * other.norm())
        chance = CHANCE / max(1.0, self.n - 1) ** 0.5
        found: bool = length == 0 or float(one @ other) <= min(chance, LARGEST_CHANCE) * length
        return found

    def _mean(self, weights: Float[Tensor, " n"] | None) -> Float[Tensor, " n"]:
        """Returns the mean of the shares in the epochs that are followed."""
        total = torch.zeros(self.n, dtype=torch.float64)
        with closing(self.epochs()) as epochs:
            for batches in islice(epochs, self.followed):
                total += batches.shares(self.n, weights)
        return total / self.followed

    @property
    def followed(self) -> int:
        """Number of epochs that are followed; it depends on the data alone, so that each run has the same weights."""
        return max(FEWEST, min(FOLLOWED, DRAWS // self.n))

    @property
    def text(self) -> str:
        """Noun phrase for the batches."""
        return f"on average over the batches of {self.name} in {self.followed} epochs"


EpochBatches: TypeAlias = Shuffled | Repeated | Followed


def drawn_by(loader: DataLoader[Batch]) -> object:
    """Returns the sampler of a loader, from within a `BatchSampler` of torch; a batch sampler of another class."""
    batches = loader.batch_sampler
    if batches is None:
        return loader.sampler
    return batches.sampler if type(batches) is BatchSampler else batches


def size_of_batches(loader: DataLoader[Batch]) -> tuple[int, bool]:
    """Returns the size of a loader's batches, and whether a shorter last one is left out."""
    batches = loader.batch_sampler
    return (batches.batch_size, batches.drop_last) if type(batches) is BatchSampler else (1, False)


def known_batches(loader: DataLoader[Batch], n: int, ordered: bool = True) -> Shuffled | Repeated | None:
    """Returns the batches of an epoch by the classes of torch; None for a sampler of another class.

    A loader in order stands for one that shuffles where `ordered` is not set.

    A `DistributedSampler` that shuffles pads the shares of its processes with samples that it draws twice; as each is
    as likely as any other, this changes c_i in order 1/n of itself, and only where weights differ.
    """
    sampler, (size, drop_last) = drawn_by(loader), size_of_batches(loader)
    if type(sampler) is SequentialSampler:
        if not ordered and len(sampler) == n:
            return Shuffled(n, _sizes(n, n, size, drop_last))
        return Repeated(n, _cut(torch.arange(len(sampler)), size, drop_last))
    if type(sampler) is SubsetRandomSampler:
        rows = torch.as_tensor(list(sampler.indices), dtype=torch.int64)
        return Shuffled(n, _sizes(len(rows), len(rows), size, drop_last), rows)
    if type(sampler) is RandomSampler and not sampler.replacement and sampler.num_samples % n == 0:
        return Shuffled(n, _sizes(sampler.num_samples, n, size, drop_last))
    if type(inner := own_sampler(sampler)) is SubsetRandomSampler:
        assert isinstance(sampler, DistributedSampler)  # as it holds another
        rows = torch.as_tensor(list(inner.indices), dtype=torch.int64)
        return Shuffled(n, _sizes(sampler.num_samples, len(rows), size, drop_last), rows)
    if type(sampler) is DistributedSampler and isinstance(sampler.dataset, Sized) and len(sampler.dataset) == n:
        if sampler.shuffle:
            return Shuffled(n, _sizes(sampler.num_samples, n, size, drop_last))
        padded = torch.arange(sampler.total_size) % n
        shares = [_cut(padded[rank :: sampler.num_replicas], size, drop_last) for rank in range(sampler.num_replicas)]
        return Repeated(n, Batches(*(torch.cat(parts) for parts in zip(*shares, strict=True))))
    return None


def _cut(rows: Rows, size: int, drop_last: bool) -> Batches:
    rest = len(rows) % size
    kept = rows[: len(rows) - rest] if drop_last else rows
    sizes = torch.full((len(kept) // size,), size)
    return Batches(kept, torch.cat([sizes, torch.tensor([rest] if rest and not drop_last else [], dtype=torch.int64)]))


def _sizes(draws: int, n: int, size: int, drop_last: bool) -> tuple[tuple[Sizes, int], ...]:
    """Returns the batches of a number of draws that run through shuffles of n samples, one after the other."""
    if draws <= n:
        rest = 0 if drop_last else draws % size
        return tuple(((b,), count) for b, count in ((size, draws // size), (rest, min(rest, 1))) if count)
    found = Counter[Sizes]()
    for first in range(0, draws - size + 1 if drop_last else draws, size):
        last = min(first + size, draws)
        ends = [first, *(k * n for k in range(first // n + 1, (last - 1) // n + 1)), last]
        found[tuple(b - a for a, b in pairwise(ends))] += 1
    return tuple(found.items())


class SamplerEpochs:
    """Epochs of a copy of a loader's own sampler, which a Trainer would tell the epoch."""

    def __init__(self, loader: DataLoader[Batch]) -> None:
        """Copies nothing yet."""
        self.loader = loader

    def __call__(self) -> Generator[Batches, None, None]:
        """Yields the batches of each epoch, from the first; random states are restored at the end.

        An epoch without end is cut after a few draws a sample.
        """
        of_batches = drawn_by(self.loader) is self.loader.batch_sampler
        most = DRAWN_MOST * len(self.loader.dataset)  # type: ignore[arg-type]  # typed as Dataset
        with undisturbed():
            seed_by(b"epochs of a sampler")
            processes = [self._copied(rank) for rank in range(self.processes)]
            for epoch in range(FOLLOWED):
                parts = list[Batches]()
                for sampler in processes:  # which a fit seeds alike
                    # A Trainer calls the sampler of a loader and that within a sampler of batches, not the latter.
                    within = sampler.sampler if isinstance(sampler, SamplerBatches) else None
                    informed = within if of_batches else sampler
                    with nullcontext() if sampler is processes[-1] else undisturbed():
                        if isinstance(informed, _TellsEpoch):
                            informed.set_epoch(epoch)
                        parts.append(self._epoch(sampler, most))
                yield Batches(*(torch.cat(each) for each in zip(*parts, strict=True)))

    @property
    def processes(self) -> int:
        """Number of processes among which the sampler divides its draws."""
        return processes_of(drawn_by(self.loader))

    def _epoch(self, sampler: Iterable[object], most: int) -> Batches:
        batches, singles, drawn = list[list[int]](), list[int](), 0
        for one in sampler:
            if isinstance(one, Iterable):
                batches.append([int(i) for i in one])
                drawn += len(batches[-1])
            else:
                singles.append(int(one))  # type: ignore[call-overload]  # a position, as the loader asks of it
                drawn += 1
            if drawn > most:
                break
        if singles:
            return _cut(torch.tensor(singles), *size_of_batches(self.loader))
        rows, sizes = [row for batch in batches for row in batch], [len(batch) for batch in batches if batch]
        return Batches(torch.tensor(rows, dtype=torch.int64), torch.tensor(sizes, dtype=torch.int64))

    def _copied(self, rank: int) -> Iterable[object]:
        sampler = drawn_by(self.loader)
        assert isinstance(sampler, Iterable)  # as every loader asks of it
        shared = (self.loader.dataset, training_reads(self.loader.dataset))
        try:
            copied = copy.deepcopy(sampler, {id(one): one for one in shared})
        except Exception:  # the user's objects may refuse to be copied in any way
            copied = copy.copy(sampler)
        if self.processes > 1:
            take_rank(copied, rank)
        return copied


def followed_batches(loader: DataLoader[Batch], n: int) -> EpochBatches:
    """Follows a loader's own sampler through two epochs: batches that come again are known."""
    sampler, (size, drop_last) = drawn_by(loader), size_of_batches(loader)
    if isinstance(sampler, DistributedSampler) and (rows := _rows_in_order(sampler, n)) is not None:
        return Shuffled(n, _sizes(sampler.num_samples, len(rows), size, drop_last), rows)
    epochs = SamplerEpochs(loader)
    pair = epochs()
    first, second = next(pair), next(pair)
    pair.close()
    if _same(first, second):
        return Repeated(n, first)
    return Followed(n, type(own_sampler(sampler)).__name__, epochs, len(first.sizes))


def _rows_in_order(sampler: DistributedSampler[int], n: int) -> Rows | None:
    """Returns the rows that a sampler has in each epoch, once each, where Lightning shuffles and deals them out."""
    inner = dealt_by(sampler)
    if inner is None or not sampler.shuffle:
        return None
    with closing(SamplerEpochs(DataLoader(range(n), sampler=inner))()) as epochs:  # type: ignore[arg-type]
        first, second = next(epochs).rows.sort().values, next(epochs).rows.sort().values
    return first if torch.equal(first, second) and len(first.unique()) == len(first) else None


def _same(one: Batches, other: Batches) -> bool:
    """Tells whether two epochs have the same batches, in any order."""
    return len(one.rows) == len(other.rows) and _canonical(one) == _canonical(other)


def _canonical(batches: Batches) -> list[tuple[int, ...]]:
    return sorted(tuple(sorted(batch.tolist())) for batch in batches.rows.split(batches.sizes.tolist()))
