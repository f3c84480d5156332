"""Samples as batches of one, each as the user's own dataset and collate function make it.

This is the form in which a loss is defined: ℓ_i is the loss of a training step on the batch of one of sample i. Forms
that compute the losses of many samples at once are used only where they agree with it (`ifloo.objective.paths`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from ifloo.objective.forms import Batch, map_tensors, tensors_of


@dataclass(frozen=True)
class Singles:
    """Samples of a batch, one by one.

    Attributes:
        batches: Batch of one of each sample, b in all.
        whole: All samples collated into one batch, for sums over them; None if sums are taken one by one.
    """

    batches: tuple[Batch, ...]
    whole: Batch | None = None

    def __len__(self) -> int:
        return len(self.batches)

    def to(self, device: torch.device, non_blocking: bool = False) -> Singles:
        """Moves all tensors to a device; a Trainer calls it, as it does for every part of a batch that has it."""
        moved = map_tensors(lambda x: x.to(device, non_blocking=non_blocking), self)
        assert isinstance(moved, Singles)
        return moved

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
        batches = tuple(self.collate(one) for one in fetched)
        lists = [one for one in fetched if isinstance(one, list)]
        if not self.with_whole or len(lists) < len(fetched):  # a data set that collates by itself gives no lists
            return Singles(batches)
        return Singles(batches, self.collate([sample for one in lists for sample in one]))


def length_of(single: Batch) -> int:
    """Returns the number of entries of all tensors of a batch of one: the length of a sample, up to a constant."""
    return sum(tensor.numel() for tensor in tensors_of(single))


def ids_of_singles(singles: Singles, ids_of: Callable[[Batch], Tensor | None]) -> Tensor | None:
    """Returns the ids that the batches of one carry, `[b]`; None if they carry none."""
    found = [ids_of(one) for one in singles.batches]
    present = [ids for ids in found if ids is not None]
    return torch.cat(present) if len(present) == len(found) else None
