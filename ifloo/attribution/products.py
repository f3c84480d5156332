"""Products of all training gradients with directions: interface, and general form by forward-mode derivatives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import DataLoader

from ifloo.gradients import gradient_norms, gradient_products, sample_gradients
from ifloo.objective.batches import Batch, batch_size, concatenate_chunks, slice_batch, to_device
from ifloo.objective.functional import Path, scoring
from ifloo.objective.loaders import sequential
from ifloo.objective.objective import Objective
from ifloo.progress import OnProgress, no_progress

QUERY_BLOCK = 16  # queries processed together; memory holds a few arrays [16, p]
DIRECTIONS_AT_ONCE = 16  # directions whose tangents [16, b] pass through the model together


def rounding_of_sum(terms: int, dtype: torch.dtype) -> float:
    """Returns a bound on the relative rounding of a sum of products, which holds with probability above 1 - 1e-3.

    Source: Higham & Mary 2019, theorem 3.1, with λ = 6.
    """
    return float(6 * terms**0.5 * torch.finfo(dtype).eps / 2)


class Products(ABC):
    """Products ∇ℓ_i(θ̂) · v of all n training samples i, computed in chunks, so that memory never holds all gradients.

    Attributes:
        ids: Training ids in order, `[n]`.
        rounding: Rounding error of a product in lower precision than the solve, relative to ‖∇ℓ_i‖ ‖v‖.
    """

    rounding: float = 0.0
    ids: Int[Tensor, " n"]

    @property
    @abstractmethod
    def name(self) -> str:
        """Description of how the products are formed, for the log line about the engine."""

    @abstractmethod
    def query_gradients(self, queries: Batch) -> Float[Tensor, "m p"]:
        """Computes ∇L_t(θ̂) of each query."""

    @abstractmethod
    def chunks(self) -> Iterator[Batch]:
        """Yields all training samples in order, as chunks for `of`: batches, or what a subclass uses in their place."""

    @abstractmethod
    def loader(self, shard: slice | None = None) -> DataLoader[Batch]:
        """Returns a loader of the same chunks for a Trainer, limited to the positions in `shard` unless it is None."""

    @abstractmethod
    def of(self, samples: Batch, directions: Float[Tensor, "m p"]) -> Float[Tensor, "m b"]:
        """Computes `directions[t] · ∇ℓ_i(θ̂)` of a chunk from `chunks`, or of any batch, seen in training or not."""

    @abstractmethod
    def largest_gradient(self) -> float:
        """Computes max_i ‖∇ℓ_i(θ̂)‖ over the training samples."""


@dataclass(frozen=True)
class ForwardProducts(Products):
    """Products for any model, in the way that its losses are differentiated: by default `jvp` of the sample losses.

    Attributes:
        objective: Objective of the training data.
        theta: θ̂, `[p]`.
        batch_size: Number of samples in a batch of `loader`.
    """

    objective: Objective
    theta: Float[Tensor, " p"]
    batch_size: int = 5000

    @property
    def name(self) -> str:
        return self.objective.losses.path.value

    @property
    def ids(self) -> Int[Tensor, " n"]:  # type: ignore[override]
        return self.objective.data.ids

    def query_gradients(self, queries: Batch) -> Float[Tensor, "m p"]:
        with scoring(self.objective.losses.module):
            return sample_gradients(self.objective.losses, self.theta, self._to_device(queries))

    def chunks(self) -> Iterator[Batch]:
        return (batch for _, batch in self.objective.data.with_ids())

    def loader(self, shard: slice | None = None) -> DataLoader[Batch]:
        data: DataLoader[Batch] = self.objective.data.loader  # type: ignore[attr-defined]
        one_by_one = self.objective.losses.path is Path.LOOP
        return sequential(data, data.batch_size or 1 if one_by_one else self.batch_size, shard)

    def of(self, samples: Batch, directions: Float[Tensor, "m p"]) -> Float[Tensor, "m b"]:
        batch = self._to_device(samples)
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

    def _to_device(self, batch: Batch) -> Batch:
        return self.objective.losses.in_form(to_device(batch, self.theta.device, self.theta.dtype))


def gradient_dots(
    objective: Objective, theta: Float[Tensor, " p"], queries: Batch, tick: OnProgress = no_progress
) -> Float[Tensor, "m n"]:
    """Computes ∇L_t(θ)·∇ℓ_i(θ) of all n training samples by forward-mode derivatives; forms query gradients only."""
    products = ForwardProducts(objective, theta)
    directions = query_gradients(objective, theta, queries)
    return concatenate_chunks((products.of(chunk, directions) for chunk in products.chunks()), objective.n, tick)


def gradient_chunks(objective: Objective, theta: Float[Tensor, " p"], size: int) -> Iterator[Float[Tensor, "g p"]]:
    """Yields ∇ℓ_i(θ) of all n training samples in order, at most `size` at a time, within the caller's `scoring`."""
    for _, batch in objective.data.with_ids():
        for start in range(0, batch_size(batch), size):
            yield sample_gradients(objective.losses, theta, slice_batch(batch, slice(start, start + size)))


def query_gradients(objective: Objective, theta: Float[Tensor, " p"], queries: Batch) -> Float[Tensor, "m p"]:
    """Computes ∇L_t(θ) of each query, in blocks of queries."""
    products, queries = ForwardProducts(objective, theta), objective.losses.in_form(queries)
    starts = range(0, batch_size(queries), QUERY_BLOCK)
    return torch.cat([products.query_gradients(slice_batch(queries, slice(i, i + QUERY_BLOCK))) for i in starts])
