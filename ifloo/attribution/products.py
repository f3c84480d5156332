"""Products of all training gradients with directions: by forward-mode derivatives, or by whatever knows them better."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import DataLoader

from ifloo.gradients import gradient_norms, gradient_products, sample_gradients
from ifloo.objective.batches import Batch, batch_size, concatenate_chunks, slice_batch, to_device
from ifloo.objective.functional import scoring
from ifloo.objective.loaders import sequential
from ifloo.objective.objective import Objective
from ifloo.progress import OnProgress, no_progress

QUERY_BLOCK = 16  # queries at once: [16, p] a handful of times
DIRECTIONS_AT_ONCE = 16  # [16, b] tangents through the model together


class Products(ABC):
    """∇ℓ_i(θ̂) · v for all n training samples i, a chunk of them at a time, never all gradients at once.

    Attributes:
        name: how they are formed, for the line that says what was picked.
        ids: `[n]`, training ids in order.
        rounding: error of a product made in less precision than the solve, relative to ‖∇ℓ_i‖ ‖v‖.
    """

    name: ClassVar[str]
    rounding: float = 0.0
    ids: Int[Tensor, " n"]

    @abstractmethod
    def query_gradients(self, queries: Batch) -> Float[Tensor, "m p"]:
        """∇L_t(θ̂) of each query."""

    @abstractmethod
    def chunks(self) -> Iterator[Batch]:
        """All training samples in order, as chunks for `of`: batches, or whatever stands for them here."""

    @abstractmethod
    def loader(self, shard: slice | None = None) -> DataLoader[Batch]:
        """The same chunks for a Trainer: of the samples with positions in `shard`; None: of all."""

    @abstractmethod
    def of(self, samples: Batch, directions: Float[Tensor, "m p"]) -> Float[Tensor, "m b"]:
        """`directions[t] · ∇ℓ_i(θ̂)` of some samples: one of `chunks`, or a batch of any, seen in training or not."""

    @abstractmethod
    def largest_gradient(self) -> float:
        """max_i ‖∇ℓ_i(θ̂)‖ over the training samples."""


@dataclass(frozen=True)
class ForwardProducts(Products):
    """By `jvp` of the vector of sample losses: any model, no per-sample gradients.

    Attributes:
        objective: of the training data.
        theta: θ̂, `[p]`.
        batch_size: samples at once in `loader`.
    """

    objective: Objective
    theta: Float[Tensor, " p"]
    batch_size: int = 5000

    name: ClassVar[str] = "forward-mode derivatives (jvp)"

    @property
    def ids(self) -> Int[Tensor, " n"]:  # type: ignore[override]
        return self.objective.data.ids

    def query_gradients(self, queries: Batch) -> Float[Tensor, "m p"]:
        with scoring(self.objective.losses.module):
            return sample_gradients(self.objective.losses, self.theta, self._moved(queries))

    def chunks(self) -> Iterator[Batch]:
        return (batch for _, batch in self.objective.data.with_ids())

    def loader(self, shard: slice | None = None) -> DataLoader[Batch]:
        return sequential(self.objective.data.loader, self.batch_size, shard)  # type: ignore[attr-defined]

    def of(self, samples: Batch, directions: Float[Tensor, "m p"]) -> Float[Tensor, "m b"]:
        batch = self._moved(samples)
        with scoring(self.objective.losses.module):
            parts = [
                gradient_products(self.objective.losses, self.theta, batch, block)
                for block in directions.split(DIRECTIONS_AT_ONCE)
            ]
        return torch.cat(parts)

    def largest_gradient(self) -> float:
        losses = self.objective.losses
        with scoring(losses.module):
            return max(float(gradient_norms(losses, self.theta, b).max()) for _, b in self.objective.data.with_ids())

    def _moved(self, batch: Batch) -> Batch:
        return to_device(batch, self.theta.device, self.theta.dtype)


def gradient_dots(
    objective: Objective, theta: Float[Tensor, " p"], queries: Batch, tick: OnProgress = no_progress
) -> Float[Tensor, "m n"]:
    """∇L_t(θ)·∇ℓ_i(θ) of all n training samples by forward-mode derivatives: only the queries' gradients are formed."""
    by = ForwardProducts(objective, theta)
    directions = query_gradients(objective, theta, queries)
    return concatenate_chunks((by.of(chunk, directions) for chunk in by.chunks()), objective.n, tick)


def gradient_chunks(objective: Objective, theta: Float[Tensor, " p"], size: int) -> Iterator[Float[Tensor, "g p"]]:
    """∇ℓ_i(θ) of all n training samples in order, at most `size` of them at a time; to be used within `scoring`."""
    for _, batch in objective.data.with_ids():
        for start in range(0, batch_size(batch), size):
            yield sample_gradients(objective.losses, theta, slice_batch(batch, slice(start, start + size)))


def query_gradients(objective: Objective, theta: Float[Tensor, " p"], queries: Batch) -> Float[Tensor, "m p"]:
    """∇L_t(θ) of each query, a block of them at a time through the model."""
    by = ForwardProducts(objective, theta)
    starts = range(0, batch_size(queries), QUERY_BLOCK)
    return torch.cat([by.query_gradients(slice_batch(queries, slice(i, i + QUERY_BLOCK))) for i in starts])
