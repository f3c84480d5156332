"""Plain modules that state their outputs apart from their losses: what Gauss-Newton and predicted classes need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import lightning as L
from jaxtyping import Float
from torch import Tensor

from ifloo.models.adapted import Adapted
from ifloo.objective.batches import Batch
from ifloo.objective.functional import silenced

# Functions of the user's own types.
OutputsFunction = Callable[..., Tensor]  # (the user's module, a batch) -> [b, ...]
OutputLossesFunction = Callable[..., Tensor]  # (outputs, a batch) -> [b], nats


@dataclass(frozen=True)
class LossesOfOutputs:
    """ℓ = losses(outputs(model, batch), batch): a function of (model, batch), as `Adapted` takes it.

    Attributes:
        outputs: of the module, `[b, ...]`, such as logits.
        losses: of each sample from its outputs, `[b]`, nats, without penalty; convex in them.
    """

    outputs: OutputsFunction
    losses: OutputLossesFunction

    def __call__(self, model: L.LightningModule, batch: Batch) -> Tensor:
        return self.losses(self.outputs(model, batch), batch)


class AdaptedOutputs(Adapted):
    """A plain module whose losses are `LossesOfOutputs`: it meets `OutputLosses` as well."""

    losses: LossesOfOutputs

    def outputs(self, batch: Batch) -> Float[Tensor, "b ..."]:
        """The module's outputs, e.g. logits."""
        with silenced(self.model):
            return self.losses.outputs(self.model, batch)

    def output_losses(self, outputs: Float[Tensor, "b ..."], batch: Batch) -> Float[Tensor, " b"]:
        """ℓ of each sample from its outputs, nats."""
        return self.losses.losses(outputs, batch)
