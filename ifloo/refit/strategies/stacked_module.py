"""K replicas of a module's trained weights as one LightningModule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, vmap

from ifloo.models import SampleLossModule
from ifloo.objective import Batch, SampleWeights, differentiable_kernels, sample_ids
from ifloo.objective.batches import without_ids
from ifloo.objective.functional import silenced
from ifloo.params import ParamSpace
from ifloo.refit.strategies.replica_weights import ReplicaWeights


class StackedModule(L.LightningModule):
    """Trains replicas of one module side by side: the loss is the sum of theirs, so that no gradient crosses over.

    The optimizer is the module's own, with `[k, *shape]` parameters put in the place of `[*shape]` ones: it sees the
    module as it is, and computes element by element. Buffers and frozen parameters are shared.
    """

    def __init__(self, module: SampleLossModule, theta: Float[Tensor, "k p"], weights: Sequence[SampleWeights]) -> None:
        """Replicas of `module` at these weights, one for each of `weights`."""
        super().__init__()
        self.module, self.space = module, ParamSpace.of(module)
        self.stacked = nn.ParameterList(v.clone() for v in self.space.unflatten(theta).values())
        self.weights = weights
        self._looked_up: ReplicaWeights | None = None

    def theta(self) -> Float[Tensor, "k p"]:
        """The present weights of the replicas, a detached copy."""
        named = dict(zip(self.space.names, self.stacked, strict=True))
        return self.space.flatten(named, batch_dims=1).detach()

    def replica_weights(self) -> ReplicaWeights:
        if self._looked_up is None:
            self._looked_up = ReplicaWeights.of(self.weights, self.device)
        return self._looked_up

    def forward(self, batch: Batch, weights: Float[Tensor, " b"]) -> Float[Tensor, ""]:
        """J of one replica on one batch; the module's parameters are then that replica's."""
        losses = self.module.sample_losses(batch)
        return (weights.to(losses.dtype) * losses).mean() + self.module.penalty()

    def replica_losses(self, batch: Batch) -> Float[Tensor, " k"]:
        """J of each replica on one batch. A random layer draws as in a fit of one, the same for all."""
        ids, given = sample_ids(batch), without_ids(batch)
        assert ids is not None
        weights = self.replica_weights().rows(ids)
        named = {f"module.{n}": x for n, x in zip(self.space.names, self.stacked, strict=True)}

        def one(values: dict[str, Tensor], row: Tensor) -> Tensor:
            loss: Tensor = functional_call(self, values, (given, row))
            return loss

        with differentiable_kernels(), silenced(self.module):
            losses: Tensor = vmap(one, randomness="same")(named, weights)
        return losses

    def training_step(self, batch: Batch, _: int) -> Float[Tensor, ""]:
        return self.replica_losses(batch).sum()

    def configure_optimizers(self) -> Any:  # whatever form the module has: Lightning takes more than its type says
        return self.module.configure_optimizers()

    def on_train_start(self) -> None:
        self.module.on_train_start()  # what a fit of one refuses
        given = dict(self.module.named_parameters())
        stacked: dict[Tensor, nn.Parameter] = {given[n]: x for n, x in zip(self.space.names, self.stacked, strict=True)}
        for optimizer in self.trainer.optimizers:
            _replace_parameters(optimizer, stacked)


def _replace_parameters(optimizer: torch.optim.Optimizer, stacked: Mapping[Tensor, nn.Parameter]) -> None:
    """Puts `[k, *shape]` parameters into an optimizer made for `[*shape]`, in place: its schedulers hold on to it."""
    for group in optimizer.param_groups:
        group["params"] = [stacked[p] for p in group["params"] if p in stacked]  # frozen ones have no gradient
    for p in [p for p in optimizer.state if p in stacked]:  # some (Adagrad) make their state at once
        state, like = optimizer.state.pop(p), stacked[p]
        optimizer.state[like] = {
            name: x.expand_as(like).clone() if name != "step" and isinstance(x, Tensor) and x.shape == p.shape else x
            for name, x in state.items()
        }
