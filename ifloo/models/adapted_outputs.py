"""Adapter for plain modules with separate outputs and losses, which Gauss-Newton and predicted classes require."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import lightning as L
from jaxtyping import Float
from torch import Tensor

from ifloo.models.adapted import Adapted
from ifloo.objective.batches import Batch
from ifloo.objective.functional import silenced

# Functions that the user provides, typed by the user's own classes.
OutputsFunction = Callable[..., Tensor]  # (the user's module, a batch) -> [b, ...]
OutputLossesFunction = Callable[..., Tensor]  # (outputs, a batch) -> [b], nats


@dataclass(frozen=True)
class LossesOfOutputs:
    """ℓ = losses(outputs(model, batch), batch) as a function of (model, batch), the form `Adapted` takes.

    Attributes:
        outputs: Function of (model, batch) that returns the outputs, `[b, ...]`, such as logits.
        losses: Function of (outputs, batch) that returns the loss of each sample, `[b]`, nats, without penalty; convex
            in the outputs.
    """

    outputs: OutputsFunction
    losses: OutputLossesFunction

    def __call__(self, model: L.LightningModule, batch: Batch) -> Tensor:
        return self.losses(self.outputs(model, batch), batch)


class AdaptedOutputs(Adapted):
    """A plain module whose losses are `LossesOfOutputs`, so that it meets the contract `OutputLosses` too."""

    losses: LossesOfOutputs

    def outputs(self, batch: Batch) -> Float[Tensor, "b ..."]:
        """Computes the module's outputs, e.g. logits."""
        with silenced(self.model):
            return self.losses.outputs(self.model, batch)

    def output_losses(self, outputs: Float[Tensor, "b ..."], batch: Batch) -> Float[Tensor, " b"]:
        """Computes ℓ of each sample from its outputs, nats."""
        return self.losses.losses(outputs, batch)
