"""Reads of samples that do not depend on the state of the random generators: fixed draws of augmented samples."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset, default_collate, default_convert

from ifloo.objective.batches import BatchedDataset, MapDataset, fetch_samples, tensors_of
from ifloo.objective.randomness import undisturbed
from ifloo.objective.singles import CollateItems, Drawn

Collate: TypeAlias = Callable[..., object]  # (result of `fetch_samples`) -> batch


class FixedReads(Dataset[object]):
    """Base class of datasets that read each sample in one fixed way, as scores need it.

    Attributes:
        dataset: The dataset that is read.
        kept: Whether samples are kept once read, so that a loader needs no worker processes, which would keep their
            own.
    """

    dataset: MapDataset
    kept: bool = False


class SeededDraws(FixedReads):
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

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SeededDraws) and other.dataset is self.dataset and other.draw == self.draw

    def __hash__(self) -> int:
        return hash((id(self.dataset), self.draw))

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
        seed_by(f"{row_behind_subsets(self.dataset, position)} {self.draw}".encode())


class SeededCollate:
    """A collate function that draws the same random numbers for the same samples, such as those it masks.

    Attributes:
        collate: Collate function of the user's loader.
        draw: Number of the draw.
    """

    def __init__(self, collate: Collate, draw: int = 0) -> None:
        """Wraps a collate function."""
        self.collate, self.draw = collate, draw

    def __call__(self, fetched: object) -> object:
        with undisturbed():
            digest = hashlib.blake2b(f"{self.draw}".encode())
            for x in tensors_of(fetched):
                digest.update(bytes_of(x))
            seed_by(digest.digest())
            return self.collate(fetched)

    def of_draw(self, draw: int) -> SeededCollate:
        """Returns the function of a draw, for a function that serves several; itself, whose draw is fixed."""
        return self


def bytes_of(x: Tensor) -> bytes | memoryview:
    """Returns the content of a tensor, dense and in order; nothing of a tensor without content."""
    if x.device.type == "meta":
        return b""
    dense = x.detach().dequantize() if x.is_quantized else x.detach()
    plain = (dense if dense.layout is torch.strided else dense.to_dense()).cpu().resolve_conj().resolve_neg()
    return plain.contiguous().flatten().view(torch.uint8).numpy().data


def seed_by(content: bytes) -> None:
    """Seeds the random generators of torch, numpy and Python by a hash of some bytes."""
    seed = int.from_bytes(hashlib.blake2b(content, digest_size=4).digest(), "big")
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed a GPU that is not in use yet
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


class SeveralDraws(FixedReads):
    """A dataset that reads several seeded draws of each sample, for `CollateDraws`.

    Attributes:
        draws: The dataset of each draw.
    """

    def __init__(self, draws: Sequence[MapDataset]) -> None:
        """Wraps the datasets of the draws, which have the same samples."""
        self.draws = tuple(draws)
        self.dataset = self.draws[0]
        self.kept = all(isinstance(one, FixedReads) and one.kept for one in self.draws)

    def __len__(self) -> int:
        return len(self.draws[0])

    def __getitem__(self, position: int) -> object:
        return tuple(one[position] for one in self.draws)

    def __getitems__(self, positions: Sequence[int]) -> object:
        return tuple(fetch_samples(one, positions) for one in self.draws)


class CollateDraws:
    """Collate function for `SeveralDraws`.

    Attributes:
        collate: Collate function of the user's loader.
    """

    def __init__(self, collate: Collate) -> None:
        """Wraps the collate function of one draw."""
        self.collate = collate

    def __call__(self, drawn: tuple[object, ...]) -> Drawn:
        return Drawn(tuple(seeded_collate(self.collate, k)(one) for k, one in enumerate(drawn)))


class TrainedOn(Dataset[object]):
    """A dataset as training reads it, together with the way in which scores read it.

    Attributes:
        dataset: The dataset that training reads, with its augmentation.
        scored: The same samples as scores read them.
    """

    def __init__(self, dataset: MapDataset, scored: MapDataset) -> None:
        """Wraps both; they have the same samples in the same order."""
        self.dataset, self.scored = dataset, scored

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, position: int) -> object:
        return self.dataset[position]

    def __getitems__(self, positions: Sequence[int]) -> object:
        return fetch_samples(self.dataset, positions)


def scored_reads(dataset: MapDataset, collate: Collate) -> tuple[MapDataset, Collate]:
    """Returns the dataset and the collate function with which scores read the samples of a training dataset."""
    scored = dataset.scored if isinstance(dataset, TrainedOn) else seeded(dataset)
    if scored is dataset and isinstance(_behind_subsets(dataset), FixedReads):  # with a collate function of this file
        return dataset, collate
    return scored, CollateDraws(collate) if isinstance(scored, SeveralDraws) else seeded_collate(collate)


def without_draws(dataset: MapDataset, collate: Collate) -> tuple[MapDataset, Collate]:
    """Returns dataset and collate function of the first draw alone, of those that `scored_reads` returns."""
    if isinstance(dataset, SeveralDraws) and isinstance(collate, CollateDraws):
        return dataset.draws[0], seeded_collate(collate.collate)
    return dataset, collate


def seeded_collate(collate: Collate, draw: int = 0) -> Collate:
    """Returns the collate function with fixed draws; torch's own, which draws nothing, stays itself."""
    if collate is default_collate or collate is default_convert:
        return collate
    if isinstance(collate, SeededCollate):
        return collate.of_draw(draw)
    if isinstance(collate, CollateItems) and isinstance(collate.convert, SeededCollate):
        return collate.convert.of_draw(draw)  # takes items, as `CollateItems` does
    return SeededCollate(collate, draw)


def training_reads(dataset: object) -> object:
    """Returns the dataset that training reads, without the wrappers around it."""
    while isinstance(dataset, (TrainedOn, FixedReads)):
        dataset = dataset.dataset
    return dataset


def is_kept(dataset: object) -> bool:
    """Whether the samples of a dataset are kept once read."""
    behind = _behind_subsets(dataset)
    return isinstance(behind, FixedReads) and behind.kept


def seeded(dataset: MapDataset, draw: int = 0) -> MapDataset:
    """Returns the dataset with seeded reads; one whose reads are fixed, such as tensors in memory, stays itself."""
    behind = _behind_subsets(dataset)
    if isinstance(behind, FixedReads) or type(behind) is TensorDataset:
        return dataset
    return SeededDraws(dataset, draw)


def tensors_in_memory(dataset: object) -> TensorDataset | None:
    """Returns the `TensorDataset` of which a dataset is a part (through any number of `Subset`s), or None."""
    behind = _behind_subsets(dataset)
    return behind if type(behind) is TensorDataset else None


def _behind_subsets(dataset: object) -> object:
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return dataset


def row_behind_subsets(dataset: object, position: int) -> int:
    """Returns the row of a sample in the dataset behind every `Subset`, given its position in the outermost one."""
    while isinstance(dataset, Subset):
        position, dataset = int(dataset.indices[position]), dataset.dataset
    return position
