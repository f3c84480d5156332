"""Reads of samples that do not depend on the state of the random generators: fixed draws of augmented samples."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import Dataset, Subset, TensorDataset

from ifloo.objective.batches import BatchedDataset, MapDataset
from ifloo.objective.randomness import undisturbed


class SeededDraws(Dataset[object]):
    """A dataset whose samples are read under a seed of their own, so that each read gives the same augmentation.

    The seed of a sample depends on its row in the dataset behind every `Subset` and on the number of the draw alone:
    it is the same in each pass, process and run. Random states are restored after each read.

    Attributes:
        dataset: The dataset that is read.
        draw: Number of the draw; another one gives another augmentation.
    """

    def __init__(self, dataset: MapDataset, draw: int = 0) -> None:
        """Wraps a dataset without reading it."""
        self.dataset, self.draw = dataset, draw

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, position: int) -> object:
        with undisturbed():
            self._seed(position)
            return self.dataset[position]

    def __getitems__(self, positions: Sequence[int]) -> object:
        with undisturbed():
            if not isinstance(self.dataset, BatchedDataset):
                return [self._alone(position) for position in positions]
            samples: list[object] = []
            for position in positions:
                self._seed(position)
                alone = self.dataset.__getitems__([position])
                if not isinstance(alone, list):  # whole batches, in a form of its own: no sample can be read alone
                    return self.dataset.__getitems__(positions)
                samples += alone
            return samples

    def _alone(self, position: int) -> object:
        self._seed(position)
        return self.dataset[position]

    def _seed(self, position: int) -> None:
        text = f"{row_behind_subsets(self.dataset, position)} {self.draw}".encode()
        seed = int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "big")
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed a GPU that is not in use yet
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed_all(seed)


def seeded(dataset: MapDataset, draw: int = 0) -> MapDataset:
    """Returns the dataset with seeded reads; one of tensors in memory, which draws nothing, is returned itself."""
    if isinstance(dataset, SeededDraws) or tensors_in_memory(dataset) is not None:
        return dataset
    return SeededDraws(dataset, draw)


def tensors_in_memory(dataset: object) -> TensorDataset | None:
    """Returns the `TensorDataset` of which a dataset is a part (through any number of `Subset`s), or None."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return dataset if type(dataset) is TensorDataset else None


def row_behind_subsets(dataset: object, position: int) -> int:
    """Returns the row of a sample in the dataset behind every `Subset`, given its position in the outermost one."""
    while isinstance(dataset, Subset):
        position, dataset = int(dataset.indices[position]), dataset.dataset
    return position
