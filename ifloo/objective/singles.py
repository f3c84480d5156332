"""Samples as batches of one, each as the user's own dataset and collate function make it.

This is the form in which a loss is defined: ℓ_i is the loss of a training step on the batch of one of sample i. Forms
that compute the losses of many samples at once are used only where they agree with it (`ifloo.objective.paths`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from ifloo.objective.forms import Batch, moved, tensors_of
from ifloo.objective.user_code import user_code

_ALONE = (
    "Each sample is collated alone, too. One that the collate function drops (None, for instance) has no loss: leave "
    "it out of the dataset (torch.utils.data.Subset)."
)

# `Singles` and `Apart` are not frozen: Lightning rebuilds the dataclasses in a batch when it converts their precision.


class Drawn(NamedTuple):
    """Several draws of the same augmented samples, each a batch; the loss of a sample is the mean over them.

    Attributes:
        draws: Batch of each draw.
    """

    draws: tuple[Batch, ...]


def first_draw(batch: Batch) -> Batch:
    """Returns the first draw of a batch of several, else the batch itself."""
    return batch.draws[0] if isinstance(batch, Drawn) else batch


class Part(NamedTuple):
    """Samples of a batch, collated into one, within which J weighs samples as a training step on them does.

    Attributes:
        rows: Positions of the samples in the batch.
        batch: The samples as one batch.
    """

    rows: tuple[int, ...]
    batch: Batch


@dataclass(eq=False)
class Singles:
    """Samples of a batch, one by one.

    Attributes:
        batches: Batch of one of each sample, b in all.
        whole: All samples collated into one batch, for sums over them; None if sums are taken one by one, or of parts.
        parts: Batches for sums where J does not weigh all samples as a training step on the whole batch does.
    """

    batches: tuple[Batch, ...]
    whole: Batch | None = None
    parts: tuple[Part, ...] = ()

    @property
    def summed(self) -> tuple[Part, ...]:
        """Batches of which sums over the samples are taken; none if sums are taken one by one."""
        whole = () if self.whole is None else (Part(tuple(range(len(self))), self.whole),)
        return self.parts or whole

    def __len__(self) -> int:
        return len(self.batches)

    def to(self, device: torch.device, non_blocking: bool = False) -> Singles:
        """Moves all tensors to a device; a Trainer calls it, as it does for every part of a batch that has it."""
        # Not `moved(self)`, which asks a part without tensors, as of arrays of NumPy, to move itself.
        batches = tuple(moved(one, device, non_blocking=non_blocking) for one in self.batches)
        parts = tuple(Part(part.rows, moved(part.batch, device, non_blocking=non_blocking)) for part in self.parts)
        return Singles(batches, moved(self.whole, device, non_blocking=non_blocking), parts)

    def pick(self, index: slice | Int[Tensor, " b"]) -> Singles:
        """Returns some of the samples, without their whole batch unless all are taken."""
        if isinstance(index, slice):
            chosen = self.batches[index]
            return self if len(chosen) == len(self.batches) else Singles(chosen)
        return Singles(tuple(self.batches[i] for i in index.tolist()))

    @classmethod
    def joined(cls, parts: Iterable[Singles]) -> Singles:
        """Joins the samples of several batches, without a whole batch."""
        return cls(tuple(one for part in parts for one in part.batches))


@dataclass(eq=False)
class Apart:
    """A training batch from which some samples are taken apart, for steps in which they have other weights.

    Attributes:
        rest: The other samples, collated; None if there are none.
        singles: The samples taken apart.
        rest_ids: Ids of the others.
        single_ids: Ids of the samples taken apart.
    """

    rest: Batch | None
    singles: Singles
    rest_ids: Int[Tensor, " r"]
    single_ids: Int[Tensor, " s"]

    def to(self, device: torch.device, non_blocking: bool = False) -> Apart:
        """Moves all tensors to a device, as a Trainer asks of every part of a batch that has this method."""
        found = moved(self, device, non_blocking=non_blocking)
        assert isinstance(found, Apart)
        return found


@dataclass(frozen=True)
class CollateItems:
    """Collate function for a loader of `batch_size=None`, each item of whose dataset is a batch already.

    Attributes:
        convert: The loader's own function of one item.
    """

    convert: Callable[..., Batch]

    def __call__(self, items: Sequence[object]) -> Batch:
        batches = tuple(self.convert(item) for item in items)
        return batches[0] if len(batches) == 1 else Singles(batches)


@dataclass(frozen=True)
class CollateSingles:
    """Collate function of samples that were fetched one by one: makes `Singles` of them.

    Attributes:
        collate: Collate function of the user's loader.
        with_whole: Whether the samples are also collated into one batch.
    """

    collate: Callable[..., Batch]
    with_whole: bool = False

    def __call__(self, fetched: Sequence[object]) -> Singles:
        return self.in_parts(fetched, [tuple(range(len(fetched)))])

    def in_parts(self, fetched: Sequence[object], parts: Sequence[tuple[int, ...]]) -> Singles:
        """Makes `Singles` with batches of parts of the samples, given by their positions, if sums are taken of any."""
        batches = tuple(collated_alone(self.collate, one) for one in fetched)
        lists = [one for one in fetched if isinstance(one, list)]
        if not self.with_whole or len(lists) < len(fetched):  # a data set that collates by itself gives no lists
            return Singles(batches)
        if [len(rows) for rows in parts] == [len(fetched)]:
            return Singles(batches, self._joined(lists, range(len(fetched))))
        return Singles(batches, None, tuple(Part(rows, self._joined(lists, rows)) for rows in parts))

    def _joined(self, lists: Sequence[list[object]], rows: Sequence[int]) -> Batch:
        return self.collate([sample for k in rows for sample in lists[k]])


def collated_alone(collate: Callable[..., Batch], fetched: object) -> Batch:
    """Returns the batch of one that a collate function makes of a fetched sample.

    Raises:
        InputError: It makes none.
    """
    name = collate.__name__ if isinstance(collate, FunctionType) else type(collate).__name__
    with user_code(name, "on one sample", _ALONE):
        return collate(fetched)


def length_of(single: Batch) -> int:
    """Returns the number of entries of all tensors of a batch of one: the length of a sample, up to a constant."""
    return sum(tensor.numel() for tensor in tensors_of(single))
