"""Datasets whose samples are read once and then kept, for the many passes that scores take."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch.utils.data import DataLoader, Dataset

from ifloo.data.sample_store import SHARE, SampleStore, packed
from ifloo.errors import InputError
from ifloo.objective.batches import Batch, MapDataset, fetch_samples
from ifloo.objective.loaders import training_dataset, with_dataset
from ifloo.objective.seeded_draws import FixedReads, SeededDraws, SeveralDraws, TrainedOn, tensors_in_memory

AHEAD = 16  # samples asked for together from which on worker processes read all the others too
PER_TASK = 32  # samples that a worker process reads at once


@dataclass(frozen=True)
class ReadSettings:
    """Way in which scores read samples that are not tensors in memory.

    Attributes:
        draws: Number of seeded draws of each training sample; the loss of an augmented sample is the mean over them.
        share: Share of the available memory in which read samples are kept.
        folder: Folder of the temporary file of those beyond; None: the folder for temporary files.
    """

    draws: int = 1
    share: float = SHARE
    folder: Path | None = None

    def __post_init__(self) -> None:
        """Checks the settings.

        Raises:
            InputError: If a setting is out of range.
        """
        if self.draws < 1:
            raise InputError(f"--adapt.draws is {self.draws}; it must be 1 or more.")
        if not 0 <= self.share <= 1:
            raise InputError(f"--adapt.memory_share is {self.share}; it must lie within 0 and 1.")


class KeptSamples(FixedReads):
    """A dataset that reads each sample once.

    Attributes:
        dataset: Dataset with fixed reads.
        store: Store of what has been read.
        name: Name of the dataset among those in the store.
        num_workers: Number of processes that read when many samples are asked for together.
    """

    kept = True

    def __init__(self, dataset: MapDataset, store: SampleStore, name: str, num_workers: int = 0) -> None:
        """Wraps a dataset without reading it."""
        self.dataset, self.store, self.name, self.num_workers = dataset, store, name, num_workers
        self._owner = os.getpid()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, position: int) -> object:
        if (self.name, position) in self.store:
            return self.store.get((self.name, position))
        sample = self.dataset[position]
        self.store.put((self.name, position), sample)
        return sample

    def __getitems__(self, positions: Sequence[int]) -> object:
        missing = [i for i in dict.fromkeys(positions) if (self.name, i) not in self.store]
        if len(missing) >= AHEAD and self.num_workers and os.getpid() == self._owner:
            self._read_all()
            missing = [i for i in missing if (self.name, i) not in self.store]
        fresh = fetch_samples(self.dataset, missing) if missing else []
        if not isinstance(fresh, list):  # whole batches, in a form of the dataset's own: nothing is kept
            return fresh if missing == list(positions) else fetch_samples(self.dataset, positions)
        read = dict(zip(missing, fresh, strict=True))
        for i, sample in read.items():
            self.store.put((self.name, i), sample)
        return [read[i] if i in read else self.store.get((self.name, i)) for i in positions]

    def _read_all(self) -> None:
        rows = [i for i in range(len(self)) if (self.name, i) not in self.store]
        tasks = [rows[start : start + PER_TASK] for start in range(0, len(rows), PER_TASK)]
        loader = DataLoader(
            _Packed(self.dataset), batch_sampler=tasks, collate_fn=_unchanged, num_workers=self.num_workers
        )
        for task, contents in zip(tasks, loader, strict=True):
            for i, content in zip(task, contents, strict=True):
                if content is not None:
                    self.store.put_packed((self.name, i), content)


class _Packed(Dataset[object]):
    """Samples as bytes, which go through the pipe of a worker process without shared memory; None where they do not."""

    def __init__(self, dataset: MapDataset) -> None:
        self.dataset = dataset

    def __getitems__(self, rows: Sequence[int]) -> list[bytes | None]:
        samples = fetch_samples(self.dataset, rows)
        return [_packed(one) for one in samples] if isinstance(samples, list) else [None] * len(rows)


def _packed(sample: object) -> bytes | None:
    try:
        return packed(sample)
    except Exception:  # an object of the user's may refuse to be pickled in any way
        return None


def _unchanged(contents: list[bytes | None]) -> list[bytes | None]:
    return contents


class SampleReads:
    """Loaders of one data module, with samples that scores read in a fixed way and once.

    Attributes:
        settings: Way in which they are read.
    """

    def __init__(self, settings: ReadSettings) -> None:
        """Creates an empty store; nothing is read."""
        self.settings = settings
        self._store = SampleStore(settings.share, settings.folder)
        self._scored: dict[str, MapDataset] = {}

    def of(
        self,
        loader: DataLoader[Batch],
        name: str,
        draws: int = 1,
        read: Callable[[MapDataset, int], MapDataset] = SeededDraws,
    ) -> DataLoader[Batch]:
        """Returns a loader from which training reads as from the given one, and scores read what is kept.

        Args:
            loader: Loader of the user's data module.
            name: Name of the set of samples, such as `train`; each call with it is about the same samples.
            draws: Number of draws of each sample.
            read: Function of (dataset, draw) that returns the dataset with the reads of this draw.

        Raises:
            InputError: If the number of samples has changed between two calls.
        """
        dataset = training_dataset(loader)
        if tensors_in_memory(dataset) is not None:  # several draws of them are those of a batch hook
            return loader if draws == 1 else with_dataset(loader, TrainedOn(dataset, SeveralDraws([dataset] * draws)))
        if name not in self._scored:
            several = [
                KeptSamples(read(dataset, draw), self._store, f"{name} {draw}", loader.num_workers)
                for draw in range(draws)
            ]
            self._scored[name] = several[0] if draws == 1 else SeveralDraws(several)
        scored = self._scored[name]
        if len(scored) != len(dataset):
            raise InputError(
                f"The {name} data had {len(scored)} samples when they were first read, and have {len(dataset)} now.\n"
                "  Let the loader of each call give the same samples; J is the mean over a fixed set."
            )
        return with_dataset(loader, TrainedOn(dataset, scored))
