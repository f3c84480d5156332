"""What the mathematics needs of a model, and nothing more."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from ifloo.objective.batches import Batch


@runtime_checkable
class SampleLosses(Protocol):
    """The contract: ℓ_i and R of J(θ; w) = (1/n) Σ_i w_i ℓ_i(θ) + R(θ)."""

    def sample_losses(self, batch: Batch) -> Float[Tensor, " b"]:
        """ℓ of each sample of the batch, in nats, unreduced, without the penalty."""
        ...

    def penalty(self) -> Float[Tensor, ""]:
        """R(θ); zero is said aloud."""
        ...


@runtime_checkable
class OutputLosses(SampleLosses, Protocol):
    """A model whose sample losses are a convex loss of its outputs: what Gauss-Newton needs besides.

    `sample_losses(batch)` equals `output_losses(outputs(batch), batch)`.
    """

    def outputs(self, batch: Batch) -> Float[Tensor, "b ..."]:
        """The model's outputs, e.g. logits."""
        ...

    def output_losses(self, outputs: Float[Tensor, "b ..."], batch: Batch) -> Float[Tensor, " b"]:
        """ℓ of each sample from its outputs, in nats."""
        ...
