"""Base class of data modules that read a training set and a test set once and record their source."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Generic, TypeVar

import lightning as L
from torch import Tensor
from torch.utils.data import DataLoader

from ifloo.data.loading import BatchSet, loader_of
from ifloo.errors import WorkError

SetT = TypeVar("SetT", bound=BatchSet)


@dataclass(frozen=True)
class Content(Generic[SetT]):
    """Data read by `setup`.

    Attributes:
        train: Training set, after its limit.
        test: Test set, after its limit.
        taken: Name of the source.
        reason: Reason why this source was chosen, for messages.
        corrupted_ids: Ids of the training samples in use that were made wrong on purpose, in order.
    """

    train: SetT
    test: SetT
    taken: str
    reason: str
    corrupted_ids: tuple[int, ...]


class LoadedDataModule(L.LightningDataModule, ABC, Generic[SetT]):
    """A data module that reads its sets once, in `setup`, and builds its loaders from them.

    A subclass has the settings `batch_size`, `num_workers` and `shuffle` among its hyperparameters.
    """

    def __init__(self) -> None:
        """Starts without data."""
        super().__init__()
        self._content: Content[SetT] | None = None
        self._fingerprint: str | None = None

    def setup(self, stage: str | None = None) -> None:
        """Reads the data; only the first call does any work."""
        if self._content is None:
            self._content = self._read()
            self._report()

    @property
    def train_set(self) -> SetT:
        return self._loaded().train

    @property
    def test_set(self) -> SetT:
        return self._loaded().test

    @property
    def source_taken(self) -> str:
        return self._loaded().taken

    @property
    def source_reason(self) -> str:
        return self._loaded().reason

    @property
    def corrupted_ids(self) -> tuple[int, ...]:
        """Ids of the training samples in use whose label or answer was made wrong on purpose, in order."""
        return self._loaded().corrupted_ids

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return self._loader(self.train_set, shuffle=self.hparams["shuffle"])

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return self._loader(self.test_set)

    def test_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return self._loader(self.test_set)

    def fingerprint(self) -> str:
        """Returns the SHA-256 of the training data except their dtype."""
        if self._fingerprint is None:
            self._fingerprint = self._digest()
        return self._fingerprint

    @abstractmethod
    def _read(self) -> Content[SetT]:
        """Reads both sets."""

    @abstractmethod
    def _report(self) -> None:
        """Logs what was read."""

    @abstractmethod
    def _digest(self) -> str:
        """Computes the fingerprint."""

    def _loader(self, samples: SetT, shuffle: bool = False) -> DataLoader[dict[str, Tensor]]:
        return loader_of(samples, self.hparams["batch_size"], self.hparams["num_workers"], shuffle)

    def _loaded(self) -> Content[SetT]:
        if self._content is None:
            raise WorkError(f"{type(self).__name__} holds no data yet.\n  Call its setup() first (a Trainer does).")
        return self._content
