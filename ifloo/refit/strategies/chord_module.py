"""Replicas of a linear head as one LightningModule; each epoch computes their gradients and takes a chord step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import lightning as L
import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad, vmap
from torch.utils.data import DataLoader, IterableDataset

from ifloo.curvature import LinearHead
from ifloo.minimize.newton_cg import FitEnd
from ifloo.objective import scoring
from ifloo.objective.batches import Batch, slice_batch
from ifloo.refit.strategies.replica_weights import ReplicaWeights

ROWS_BYTES = 8 << 20  # outputs and derivatives of a block of samples: they stay in cache between the two products
SLOWEST_FALL = 0.5  # largest ratio of ‖∇J‖ after and before a pass; a slower replica would not reach 1e-10

# (∇J of some replicas `[k, p]`, their numbers `[k]`) -> the steps to subtract from their weights, `[k, p]`.
Step = Callable[[Tensor, Tensor], Tensor]


class Piece(NamedTuple):
    """The samples behind one chunk of a head.

    Attributes:
        number: Number of the chunk.
        ids: Ids of the samples, `[b]`.
        batch: The samples.
    """

    number: int
    ids: Tensor
    batch: Batch


class ChordModule(L.LightningModule):
    """Minimises J(θ; w_k) of K replicas by θ_k ← θ_k − H_k⁻¹∇J(θ_k; w_k) with a fixed H_k for all passes.

    The gradient is that of the replica's own objective over all samples, so ‖∇J‖ certifies the result whatever H_k is.

    Source: Ortega & Rheinboldt 1970, section 7.1 (chord method).

    Attributes:
        head: Linear head at the base weights.
        weights: Sample weights of the replicas.
        step: Function that computes H_k⁻¹∇J.
        tolerance: ‖∇J‖ to reach.
        theta: Weights of the replicas, `[k, p]`.
        minima: End of each replica; None if its ‖∇J‖ fell too slowly or 20 passes were not enough.
    """

    def __init__(
        self, head: LinearHead, theta: Float[Tensor, "k p"], weights: ReplicaWeights, step: Step, tolerance: float
    ) -> None:
        """Starts the replicas at `theta`."""
        super().__init__()
        self.automatic_optimization = False
        self.head, self.weights, self.step, self.tolerance = head, weights, step, tolerance
        self.theta = theta
        self.minima: list[FitEnd | None] = [None] * len(theta)
        self._active = torch.arange(len(theta))
        self._before = torch.full((len(theta),), float("inf"), dtype=theta.dtype)
        self._passes = 0

    def configure_optimizers(self) -> None:
        """Returns None: a step is a linear solve, not one of an optimizer."""

    def train_dataloader(self) -> DataLoader[Piece]:
        # Without a generator, the loader would draw its workers' seed from the global random state.
        return DataLoader(_Chunks(self.head), batch_size=None, generator=torch.Generator())

    def transfer_batch_to_device(self, batch: Piece, device: torch.device, dataloader_idx: int) -> Piece:
        """Leaves the samples on the device of the head."""
        return batch

    def on_train_epoch_start(self) -> None:
        head = self.head
        live = head.layer.matrices(self.theta[self._active]).index_select(-1, head.live)  # [k, c, d]
        self._live = live.flatten(0, 1)
        self._sum, self._value = torch.zeros_like(self._live), self._live.new_zeros(len(live))

    def training_step(self, piece: Piece, _: int) -> None:
        number, ids, batch = piece
        chunk, k = self.head.chunks[number], len(self._active)
        weights = self.weights.rows(ids)[self._active.to(self.weights.default.device)].to(self._live.dtype)
        width = chunk.inputs.shape[1] * (len(self._live) + chunk.inputs.shape[2]) * self._live.element_size()
        size = max(1, ROWS_BYTES // width)
        with scoring(self.head.layer.losses.module):
            for start in range(0, len(ids), size):
                cut = slice(start, start + size)
                self._add(chunk.inputs[cut], slice_batch(batch, cut), weights[:, cut], k)

    def _add(self, x: Tensor, batch: Batch, weights: Float[Tensor, "k b"], k: int) -> None:
        """Adds the losses of a block of samples and their gradients in the weights, for all active replicas."""
        layer, theta = self.head.layer, self.head.theta
        b, t, d = x.shape
        flat = x.reshape(b * t, d)
        z = (flat @ self._live.T).view(b, t, k, -1)
        if layer.linear.bias is not None and not layer.with_bias:
            z = z + layer.linear.bias.detach()

        def losses(outputs: Tensor) -> tuple[Tensor, Tensor]:
            each = layer.losses_of(theta, outputs, batch)
            return each.sum(), each.detach()

        slopes, each = vmap(grad(losses, has_aux=True), in_dims=2, out_dims=(2, 0))(z)
        weighted = slopes * weights.T[:, None, :, None]
        self._sum.addmm_(weighted.reshape(b * t, -1).T, flat)
        self._value += (weights * each).sum(1)

    def on_train_epoch_end(self) -> None:
        head, n = self.head, self.head.n
        theta = self.theta[self._active]
        penalties, gradient = vmap(_penalty_and_gradient(head))(theta)
        mean = theta.new_zeros(len(theta), head.layer.classes, head.layer.columns)
        mean.index_copy_(-1, head.live, self._sum.view(len(theta), head.layer.classes, -1) / n)
        gradient = gradient + head.layer.flat(mean)
        values, norms = self._value / n + penalties, gradient.norm(dim=1)
        self._passes += 1
        self._settle(theta, values, norms)
        going = (norms > self.tolerance) & (norms <= SLOWEST_FALL * self._before[self._active].to(norms.device))
        self._before[self._active] = norms.cpu()
        self._active = self._active[going.cpu()]
        if len(self._active):
            self.theta[self._active] = theta[going] - self.step(gradient[going], self._active)
        else:
            self.trainer.should_stop = True

    def _settle(self, theta: Tensor, values: Tensor, norms: Tensor) -> None:
        """Stores the end of each active replica that has reached the tolerance."""
        for row, k in enumerate(self._active.tolist()):
            if norms[row] <= self.tolerance:
                self.minima[k] = FitEnd(theta[row], float(values[row]), float(norms[row]), self._passes, self._passes)


class _Chunks(IterableDataset[Piece]):
    """Dataset of the samples behind each chunk of a head."""

    def __init__(self, head: LinearHead) -> None:
        self.head = head

    def __iter__(self) -> Iterator[Piece]:
        for number, (ids, batch) in enumerate(self.head.objective.data.with_ids()):
            yield Piece(number, ids, batch)


def _penalty_and_gradient(head: LinearHead) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    def both(theta: Tensor) -> tuple[Tensor, Tensor]:
        penalty = head.objective.losses.penalty
        return penalty(theta), grad(penalty)(theta)

    return both
