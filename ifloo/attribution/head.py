"""Products with the training gradients of a linear head, which are outer products: all work is matrix products."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import DataLoader

from ifloo.attribution.products import ForwardProducts, Products, rounding_of_sum
from ifloo.curvature import LinearHead
from ifloo.objective.batches import Batch

GRADIENT_BYTES = 16 << 20  # memory for the gradients, or their factors, formed at a time


class Piece(NamedTuple):
    """Samples `start` to `stop` of one of the head's chunks."""

    chunk: int
    start: int
    stop: int


class HeadProducts(Products):
    """Products with ∇ℓ_i = Σ_t r_it ⊗ x_it in the coordinates of the head's core: 2 n q m operations for m directions.

    With few directions, x·V is contracted with r. With many, the gradients of a block are formed and multiplied.
    """

    name = "matrix products (linear head)"

    def __init__(self, head: LinearHead, dtype: torch.dtype | None = None) -> None:
        """Converts what the head keeps to the dtype of the products.

        Args:
            head: Linear head, which holds the inputs and residuals of all training samples.
            dtype: Precision of the products; None takes that of the head.
        """
        self.head, self.dtype = head, dtype or head.dtype
        self.inputs = [c.inputs.to(self.dtype) for c in head.chunks]
        self.residuals = [(c.residuals @ head.basis).to(self.dtype) for c in head.chunks]
        if torch.finfo(self.dtype).eps > torch.finfo(head.dtype).eps:
            self.rounding = rounding_of_sum(head.core_size, self.dtype)
        self._reduced: tuple[Tensor, Tensor] | None = None

    @property
    def ids(self) -> Int[Tensor, " n"]:  # type: ignore[override]
        return self.head.objective.data.ids

    def query_gradients(self, queries: Batch) -> Float[Tensor, "m p"]:
        rows = self.head.rows_of(queries)
        return self.head.layer.flat(rows.residuals.mT @ rows.inputs)

    def chunks(self) -> Iterator[Piece]:
        return iter(self._pieces(0, len(self.ids)))

    def loader(self, shard: slice | None = None) -> DataLoader[Piece]:
        start, stop, _ = (shard or slice(None)).indices(len(self.ids))
        pieces = self._pieces(start, stop)
        # A list has all that torch requires of a map-style dataset: a length and items.
        return DataLoader(pieces, batch_size=None, collate_fn=_itself, generator=torch.Generator())  # type: ignore[arg-type]

    def of(self, samples: Piece | Batch, directions: Float[Tensor, "m p"]) -> Float[Tensor, "m b"]:
        if not isinstance(samples, Piece):  # inputs and residuals are kept of training samples only
            return ForwardProducts(self.head.objective, self.head.theta).of(samples, directions)
        x = self.inputs[samples.chunk][samples.start : samples.stop]
        r = self.residuals[samples.chunk][samples.start : samples.stop]
        D = self._in_core(directions)
        out = D.new_empty(len(D), len(x))
        many = len(D) >= x.shape[-1]
        width = D.shape[1] if many else len(D) * r.shape[-1] * r.shape[-2]
        step = max(1, GRADIENT_BYTES // (width * D.element_size()))
        for start in range(0, len(x), step):
            rows = slice(start, start + step)
            out[:, rows] = _by_gradients(D, x[rows], r[rows]) if many else _by_outputs(D, x[rows], r[rows])
        return out

    def largest_gradient(self) -> float:
        largest = 0.0
        for chunk in self.head.chunks:
            step = max(1, GRADIENT_BYTES // (chunk.inputs.shape[1] ** 2 * chunk.inputs.element_size()))
            parts = zip(chunk.residuals.split(step), chunk.inputs.split(step), strict=True)
            largest = max(largest, *(float(_norms(r, x).max()) for r, x in parts))
        return largest

    def _pieces(self, start: int, stop: int) -> list[Piece]:
        pieces, first = [], 0
        for k, x in enumerate(self.inputs):
            low, high = max(start - first, 0), min(stop - first, len(x))
            if low < high:
                pieces.append(Piece(k, low, high))
            first += len(x)
        return pieces

    def _in_core(self, directions: Float[Tensor, "m p"]) -> Float[Tensor, "m q"]:
        """Returns the coordinates of the directions in the core; cached, since every chunk uses the same ones."""
        if self._reduced is None or self._reduced[0] is not directions:
            self._reduced = (directions, self.head.reduce(directions).to(self.dtype))
        return self._reduced[1]


def _by_gradients(D: Float[Tensor, "m q"], x: Float[Tensor, "b t d"], r: Float[Tensor, "b t r"]) -> Tensor:
    gradients = r.mT * x if x.shape[1] == 1 else r.mT @ x  # [b, r, d]; `@` is slow at a batch of outer products
    return (gradients.flatten(1) @ D.T).T


def _by_outputs(D: Float[Tensor, "m q"], x: Float[Tensor, "b t d"], r: Float[Tensor, "b t r"]) -> Tensor:
    b, t, d = x.shape
    u = (x.reshape(b * t, d) @ D.view(-1, d).T).view(b, t, len(D), -1)
    return (u * r.unsqueeze(2)).sum((1, 3)).T


def _norms(r: Float[Tensor, "b t c"], x: Float[Tensor, "b t d"]) -> Float[Tensor, " b"]:
    """Computes ‖Σ_t r_t ⊗ x_t‖ from inner products of positions, without forming a gradient."""
    return ((r @ r.mT) * (x @ x.mT)).sum((1, 2)).clamp_min(0).sqrt()


def _itself(piece: Piece) -> Piece:
    return piece
