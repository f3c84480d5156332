"""Products of all training gradients with directions: by forward-mode derivatives, or by whatever knows them better."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import DataLoader

from ifloo.gradients import gradient_norms, gradient_products, sample_gradients
from ifloo.objective.batches import Batch, moved
from ifloo.objective.functional import scoring
from ifloo.objective.loaders import sequential
from ifloo.objective.objective import Objective

Chunk: TypeAlias = object  # some training samples, in the form that one kind of products understands
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
    def chunks(self) -> Iterator[Chunk]:
        """All training samples in order, as chunks for `of`."""

    @abstractmethod
    def loader(self, shard: slice | None = None) -> DataLoader[Chunk]:
        """The same chunks for a Trainer: of the samples with positions in `shard`; None: of all."""

    @abstractmethod
    def of(self, chunk: Chunk, directions: Float[Tensor, "m p"]) -> Float[Tensor, "m b"]:
        """`directions[t] · ∇ℓ_i(θ̂)` of the samples of a chunk."""

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

    def chunks(self) -> Iterator[Chunk]:
        return (batch for _, batch in self.objective.data.with_ids())

    def loader(self, shard: slice | None = None) -> DataLoader[Chunk]:
        return sequential(self.objective.data.loader, self.batch_size, shard)  # type: ignore[attr-defined]

    def of(self, chunk: Chunk, directions: Float[Tensor, "m p"]) -> Float[Tensor, "m b"]:
        batch = self._moved(chunk)
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
        return moved(batch, self.theta.device, self.theta.dtype)
