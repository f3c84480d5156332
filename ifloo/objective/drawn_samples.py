"""Samples drawn from all training data, on which fast forms of the losses are compared with the definition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import DataLoader

from ifloo.errors import InputError
from ifloo.objective.batches import Batch, fetch_samples, sample_ids, to_device, without_ids
from ifloo.objective.forms import tensors_of
from ifloo.objective.loaders import samples_behind, separately, unwrap_loader
from ifloo.objective.separation import Separation
from ifloo.objective.singles import collated_alone, length_of

DRAWN = 256  # samples whose lengths are compared
CHECKED = 16  # samples, the shortest and the longest among them, on which fast forms are compared with the definition
SEED = 0


@dataclass(frozen=True)
class DrawnSamples:
    """Samples drawn from all training data, the shortest and the longest of `DRAWN` among them.

    Attributes:
        dataset: Dataset and collate function of the user's loader.
        collate: Collate function.
        rows: Positions of the samples in the dataset.
        singles: Batch of one of each, on the device and in the dtype of the parameters.
        batched: Whether the loader collates samples into batches.
        device: Device of the parameters.
        dtype: Precision of the parameters.
        n: Number of all samples.
    """

    dataset: object
    collate: Callable[..., Batch]
    rows: tuple[int, ...]
    singles: tuple[Batch, ...]
    batched: bool
    device: torch.device
    dtype: torch.dtype
    n: int

    @classmethod
    def of(cls, loader: DataLoader[Batch], device: torch.device, dtype: torch.dtype) -> DrawnSamples:
        """Draws samples and collates each alone.

        Raises:
            InputError: There is no sample.
        """
        dataset, collate = unwrap_loader(loader)
        n, batched = len(samples_behind(loader)), loader.batch_sampler is not None
        if n == 0:
            raise InputError("The training data hold no sample.")
        drawn = torch.randperm(n, generator=torch.Generator().manual_seed(SEED))[:DRAWN].tolist()
        fetched = separately(loader, with_whole=False).dataset
        alone = {i: collated_alone(collate, one) for i, one in zip(drawn, fetched.__getitems__(drawn), strict=True)}  # type: ignore[attr-defined]
        lengths = {i: length_of(one) for i, one in alone.items()}
        chosen = dict.fromkeys([min(drawn, key=lengths.__getitem__), max(drawn, key=lengths.__getitem__), *drawn])
        rows = tuple(chosen)[:CHECKED]
        singles = tuple(to_device(alone[i], device, dtype) for i in rows)
        return cls(dataset, collate, rows, singles, batched, device, dtype, n)

    @cached_property
    def batch(self) -> Batch:
        """The samples as one batch of the user's collate function."""
        collated = self.collate(fetch_samples(self.dataset, list(self.rows)))  # type: ignore[arg-type]
        return to_device(collated, self.device, self.dtype)

    @cached_property
    def separation(self) -> Separation:
        """Division of batches into samples."""
        first = fetch_samples(self.dataset, [self.rows[0]])  # type: ignore[arg-type]
        return Separation.of_sample(self.collate, first, self.batched)

    @property
    def shares_tensors(self) -> bool:
        """Whether a tensor of a batch belongs to all samples, so that it must not be cut with them."""
        sizes = {tensor.shape[0] for tensor in tensors_of(without_ids(self.batch)) if tensor.ndim}
        return len(sizes) > 1

    @cached_property
    def ids(self) -> Int[Tensor, " b"]:
        """Ids of the samples: those they carry, or their positions."""
        found = [sample_ids(one) for one in self.singles]
        present = [int(ids[0]) for ids in found if ids is not None]
        return torch.tensor(present if len(present) == len(self.rows) else self.rows)
