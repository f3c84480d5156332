"""K replicas of a module's trained weights as one LightningModule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import vmap

from ifloo.models import SampleLossModule
from ifloo.objective import Batch, SampleWeights, differentiable_kernels, sample_ids
from ifloo.objective.batches import without_ids
from ifloo.objective.exchanged import call_exchanged
from ifloo.objective.functional import silenced
from ifloo.params import ParamSpace
from ifloo.refit.strategies.replica_weights import ReplicaWeights


class StackedModule(L.LightningModule):
    """Trains replicas of one module side by side; the loss is the sum of theirs, so no replica affects another.

    The optimizer is built by the module itself; then its `[*shape]` parameters are replaced by stacked ones,
    `[k, *shape]`, which it steps element by element. Buffers and frozen parameters are shared.
    """

    def __init__(self, module: SampleLossModule, theta: Float[Tensor, "k p"], weights: Sequence[SampleWeights]) -> None:
        """Makes replicas of a module.

        Args:
            module: Module to replicate.
            theta: Weights at which the replicas start.
            weights: Sample weights of each replica.
        """
        super().__init__()
        self.module, self.space = module, ParamSpace.of(module)
        self.stacked = nn.ParameterList(v.clone() for v in self.space.unflatten(theta).values())
        self.weights = weights
        self._replica_weights: ReplicaWeights | None = None

    def theta(self) -> Float[Tensor, "k p"]:
        """Returns a detached copy of the present weights of the replicas."""
        named = dict(zip(self.space.names, self.stacked, strict=True))
        return self.space.flatten(named, batch_dims=1).detach()

    def replica_weights(self) -> ReplicaWeights:
        """Returns the sample weights of all replicas, on the device of this module."""
        if self._replica_weights is None:
            self._replica_weights = ReplicaWeights.of(self.weights, self.device)
        return self._replica_weights

    def forward(self, batch: Batch, weights: Float[Tensor, " b"]) -> Float[Tensor, ""]:
        """Computes J of one replica on one batch; `functional_call` has put its weights into the module."""
        losses = self.module.sample_losses(batch)
        return (weights.to(losses.dtype) * losses).mean() + self.module.penalty()

    def replica_losses(self, batch: Batch) -> Float[Tensor, " k"]:
        """Computes J of each replica on one batch; random layers draw the same numbers for all, as in a single fit."""
        ids, samples = sample_ids(batch), without_ids(batch)
        assert ids is not None
        weights = self.replica_weights().rows(ids)
        named = {f"module.{n}": x for n, x in zip(self.space.names, self.stacked, strict=True)}

        def one(values: dict[str, Tensor], row: Tensor) -> Tensor:
            return call_exchanged(self, values, (samples, row))

        with differentiable_kernels(), silenced(self.module):
            losses: Tensor = vmap(one, randomness="same")(named, weights)
        return losses

    def training_step(self, batch: Batch, _: int) -> Float[Tensor, ""]:
        return self.replica_losses(batch).sum()

    def configure_optimizers(self) -> Any:  # the form of the module's own: Lightning accepts more than its type states
        return self.module.configure_optimizers()

    def on_train_start(self) -> None:
        self.module.on_train_start()  # raises what it would raise in a single fit
        single = dict(self.module.named_parameters())
        stacked: dict[Tensor, nn.Parameter] = {
            single[n]: x for n, x in zip(self.space.names, self.stacked, strict=True)
        }
        for optimizer in self.trainer.optimizers:
            _replace_parameters(optimizer, stacked)


def _replace_parameters(optimizer: torch.optim.Optimizer, stacked: Mapping[Tensor, nn.Parameter]) -> None:
    """Replaces the `[*shape]` parameters of an optimizer by stacked ones, in place: its schedulers refer to it."""
    for group in optimizer.param_groups:
        group["params"] = [stacked[p] for p in group["params"] if p in stacked]  # frozen ones have no gradient
    for p in [p for p in optimizer.state if p in stacked]:  # some (Adagrad) create their state with the optimizer
        state, like = optimizer.state.pop(p), stacked[p]
        optimizer.state[like] = {
            name: x.expand_as(like).clone() if name != "step" and isinstance(x, Tensor) and x.shape == p.shape else x
            for name, x in state.items()
        }
