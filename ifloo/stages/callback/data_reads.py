"""Reads of the user's data during a fit, which change nothing that the fit reads: no counter, cache or generator.

The reads take place in a process that begins with a copy of this one's memory. Where none can be made, they are of a
copy of the data, and the states of random generators are restored. A process that ends by itself, such as for lack of
memory, has nothing read again: that could end the fit.
"""

from __future__ import annotations

import copy
import io
import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TypeVar

from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    default_collate,
    default_convert,
)

from ifloo.data.kept_samples import ReadSettings, SampleReads
from ifloo.errors import WorkError
from ifloo.objective.batches import Batch, MapDataset
from ifloo.objective.dealt_samplers import dealt_by, dealt_like, own_sampler
from ifloo.objective.epoch_batches import drawn_by
from ifloo.objective.loaders import training_dataset, with_dataset
from ifloo.objective.seeded_draws import Collate, FixedReads, SeededCollate, SeededDraws, TrainedOn, tensors_in_memory
from ifloo.objective.singles import CollateItems
from ifloo.stages.callback.order_apart import Samplers, order_apart
from ifloo.stages.callback.reader_process import ReaderProcess, can_fork
from ifloo.stages.callback.shared_memory import shared_with_processes
from ifloo.stages.isolation import reached_by

log = logging.getLogger(__name__)
Found = TypeVar("Found")
_SAMPLERS = (SequentialSampler, RandomSampler, SubsetRandomSampler)  # have no state but their generator


class DataReads:
    """Way in which the data of one fit are read.

    Attributes:
        ended: Error of a process that ended by itself, after which nothing is read; None if none did.
    """

    ended: WorkError | None = None

    def __init__(self, stops: Callable[[], bool] = lambda: False, held: Iterable[object] = ()) -> None:
        """Reads nothing, and makes no process yet.

        Args:
            stops: Function that tells whether the fit is to end, so that nothing is waited for.
            held: What the data may be read with, beside the loader: the threads of these are not in another process.
        """
        self._without: str | None = None if can_fork() else "this system forks no processes"
        self._stops, self._held, self._noted = stops, tuple(held), set[str]()

    def once(self, read: Callable[[DataLoader[Batch]], Found], loader: DataLoader[Batch], alone: bool = False) -> Found:
        """Returns the result of a function that reads a loader.

        Args:
            read: Function of the loader, or of one with a copy of its data.
            loader: Training loader of the fit.
            alone: Whether the function reads no other data of the user's.
        """
        if alone and _only_tensors(loader):
            return read(loader)

        def asked(process: ReaderProcess) -> Found:
            return process.call("read")  # type: ignore[return-value]  # the result of `read`

        return self._first_of(asked, {"read": partial(read, loader)}, lambda: read(self._copied(loader)), loader)

    def during(self, work: Callable[[DataLoader[Batch]], Found], loader: DataLoader[Batch], draws: int = 1) -> Found:
        """Returns the result of work in this process that reads samples from the loader that it is given.

        Args:
            work: Work; it begins again if the reads fail where they are made first.
            loader: Training loader of the fit.
            draws: Number of seeded draws of each sample.
        """
        if _only_tensors(loader):
            return work(loader)
        dataset = training_dataset(loader)
        reads: dict[str, Callable[..., object]] = Samplers(loader).reads | {
            "collate": lambda draw, fetched: SeededCollate(_of_batches(loader), draw)(fetched)
        }
        for draw in range(draws):
            one = SeededDraws(dataset, draw)
            reads |= {f"sample {draw}": one.__getitem__, f"samples {draw}": one.__getitems__}
        return self._first_of(
            lambda process: work(_loader_apart(loader, process, draws)),
            reads,
            lambda: work(_with_draws(self._copied(loader), draws)),
            loader,
        )

    def own(self, data: Found) -> Found:
        """Returns other data that a function of `once` reads: as they are, or where it reads here, a copy."""
        return data if self._without is None or only_memory(data) else self._copy_of(data)

    def _first_of(
        self,
        in_process: Callable[[ReaderProcess], Found],
        reads: dict[str, Callable[..., object]],
        here: Callable[[], Found],
        loader: DataLoader[Batch],
    ) -> Found:
        """Returns what a process makes possible; where there is none, or it cannot serve, what this one does.

        Raises:
            WorkError: The process ended by itself; what ended it might end this one too.
        """
        if self.ended is not None:
            raise self.ended
        process = self._process(reads, loader)
        if process is None:
            return here()
        with process:
            try:
                found = in_process(process)
            except Exception:
                if process.failure is None and process.ended is None:
                    raise
            else:
                if process.failure is None and process.ended is None:
                    return found
        if process.ended is not None:
            self.ended = process.ended
            raise process.ended
        self._without = process.failure
        return here()

    def _process(self, reads: dict[str, Callable[..., object]], loader: DataLoader[Batch]) -> ReaderProcess | None:
        """Returns a process; None where there can be none, whose reason is kept."""
        if self._without is not None:
            return None
        parts = (loader.dataset, loader.collate_fn, loader.sampler, loader.batch_sampler)
        self._warn_of_shared(shared_with_processes(reached_by(*parts)))
        found = list(reached_by(*parts, *self._held))
        if any(isinstance(one, threading.Thread) and _needed(one) for one in found):
            self._without = "the data use threads of this process"
            return None
        for one in found:
            if isinstance(one, io.IOBase):
                with suppress(Exception):  # a file of the user's may be anything
                    one.flush()  # or the new process would write the text again
        try:
            return ReaderProcess(reads, self._stops)
        except (OSError, AssertionError) as error:  # no memory, or a process that may have none of its own
            self._without = f"no other process can be made: {error}"
        return None

    def _warn_of_shared(self, kinds: Sequence[str]) -> None:
        text = f"The data hold {', '.join(kinds)}: what reads write there for the scores, the fit reads as well."
        if kinds and text not in self._noted:
            log.warning("InfluenceCallback may change the fit. %s", text)
            self._noted.add(text)

    def _copied(self, loader: DataLoader[Batch]) -> DataLoader[Batch]:
        """Returns a loader with a copy of its data; the loader itself if they cannot be copied."""
        if _only_tensors(loader):
            return loader
        parts = (loader.dataset, loader.collate_fn, loader.batch_sampler, loader.sampler)
        if (copies := self._copy_of(parts)) is parts:
            return loader
        dataset, collate, batches, sampler = copies
        return with_dataset(loader, dataset, collate, sampler if batches is None else batches)  # type: ignore[arg-type]

    def _copy_of(self, data: Found) -> Found:
        try:
            copied = copy.deepcopy(data)
        except Exception as error:  # the user's objects may refuse to be copied in any way
            self._note(f"they cannot be copied ({type(error).__name__}: {error}), so reads may move their counters")
            return data
        self._note("from a copy, so reads may still move what a function of theirs holds, such as a counter or a file")
        return copied

    def _note(self, how: str) -> None:
        if how not in self._noted:
            log.warning(
                "InfluenceCallback reads the data in the process of the fit (%s), %s; random states are restored.",
                self._without,
                how,
            )
        self._noted.add(how)


def _needed(thread: threading.Thread) -> bool:
    """Whether a thread may serve reads; that of a loader that pins batches serves only its own iterator."""
    return thread.is_alive() and "_pin_memory_loop" not in thread.name


def only_memory(data: object) -> bool:
    """Whether reads of data change nothing: tensors, collections of them, and loaders of them by functions of torch."""
    if isinstance(data, DataLoader):
        return _only_tensors(data)
    if isinstance(data, (Mapping, list, tuple)):
        return all(only_memory(one) for one in (data.values() if isinstance(data, Mapping) else data))
    if isinstance(data, (Dataset, Tensor)):
        return isinstance(data, Tensor) or tensors_in_memory(data) is not None
    return data is None or isinstance(data, (str, int, float))


def _only_tensors(loader: DataLoader[Batch]) -> bool:
    """Whether reads change nothing but states of generators: of tensors in memory, by functions of torch."""
    return (
        tensors_in_memory(training_dataset(loader)) is not None and _of_torch(loader.collate_fn) and _stateless(loader)
    )


def _of_batches(loader: DataLoader[Batch]) -> Collate:
    """Returns the function that makes a batch of what is fetched."""
    return CollateItems(loader.collate_fn) if loader.batch_sampler is None else loader.collate_fn


def _of_torch(collate: object) -> bool:
    return collate is default_collate or collate is default_convert


def _stateless(loader: DataLoader[Batch]) -> bool:
    sampler = drawn_by(loader)
    if isinstance(sampler, DistributedSampler) and dealt_by(sampler) is None:
        return True
    return type(own_sampler(sampler)) in _SAMPLERS


def _with_draws(loader: DataLoader[Batch], draws: int) -> DataLoader[Batch]:
    return loader if draws == 1 else SampleReads(ReadSettings(draws)).of(loader, "train", draws)


def _loader_apart(loader: DataLoader[Batch], process: ReaderProcess, draws: int) -> DataLoader[Batch]:
    """Returns a loader of the same data, whose samples, batches and order come from a process."""
    dataset, collate = training_dataset(loader), loader.collate_fn
    order: Iterable[object] | None = None
    if not _stateless(loader):
        order = dealt_like(drawn_by(loader), order_apart(loader, process))
        if type(batches := loader.batch_sampler) is BatchSampler:
            order = BatchSampler(order, batches.batch_size, batches.drop_last)  # type: ignore[arg-type]
    own = collate if _of_torch(collate) else _CollateApart(_of_batches(loader), process)
    if tensors_in_memory(dataset) is not None:
        return with_dataset(loader, dataset, own, order)
    if draws == 1:
        return with_dataset(loader, TrainedOn(dataset, _ReadsApart(dataset, 0, process)), own, order)
    several = SampleReads(ReadSettings(draws)).of(
        loader, "train", draws, lambda read, draw: _ReadsApart(read, draw, process)
    )
    return with_dataset(several, several.dataset, own, order)  # type: ignore[arg-type]  # typed as Dataset


class _ReadsApart(FixedReads):
    """Seeded reads of a dataset in a process of their own."""

    def __init__(self, dataset: MapDataset, draw: int, process: ReaderProcess) -> None:
        self.dataset, self.draw, self._process = dataset, draw, process

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, position: int) -> object:
        return self._process.call(f"sample {self.draw}", position)

    def __getitems__(self, positions: Sequence[int]) -> object:
        return self._process.call(f"samples {self.draw}", list(positions))

    def __reduce__(self) -> tuple[type[SeededDraws], tuple[MapDataset, int]]:
        """Travels to a worker process, which reads by itself."""
        return SeededDraws, (self.dataset, self.draw)


class _CollateApart(SeededCollate):
    """A collate function with fixed draws, called in a process of its own."""

    def __init__(self, collate: Collate, process: ReaderProcess, draw: int = 0) -> None:
        super().__init__(collate, draw)
        self._process = process

    def __call__(self, fetched: object) -> object:
        return self._process.call("collate", self.draw, fetched)

    def of_draw(self, draw: int) -> _CollateApart:
        return self.redrawn(draw)

    def redrawn(self, draw: int) -> _CollateApart:
        return _CollateApart(self.collate, self._process, draw)

    def __reduce__(self) -> tuple[type[SeededCollate], tuple[Collate, int]]:
        """Travels to a worker process, which collates by itself."""
        return SeededCollate, (self.collate, self.draw)
