"""Base class of models that meet the contract: one loss serves training, scoring and refits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, final

import lightning as L
import torch
from jaxtyping import Float
from torch import Tensor

from ifloo.errors import InputError
from ifloo.models.decay import decoupled
from ifloo.objective.batches import Batch, as_made, batch_size, sample_ids
from ifloo.objective.weights import SampleWeights


class SampleLossModule(L.LightningModule, ABC):
    """A LightningModule that states ℓ_i and R separately, so that J(θ; w) is known and every sample has a weight.

    `training_step` is final: mean of w[id] · ℓ + R. The penalty belongs in `penalty`, not in the optimizer: otherwise
    the curvature is that of another function than the one trained.

    Attributes:
        sample_weights: Weights w by sample id; all 1 unless a refit sets them.
    """

    def __init__(self) -> None:
        """Sets every sample weight to 1."""
        super().__init__()
        self.sample_weights = SampleWeights()

    def __init_subclass__(cls) -> None:
        """Checks that the subclass does not replace the training loss J.

        Raises:
            InputError: If the subclass defines `training_step`.
        """
        super().__init_subclass__()
        if "training_step" in cls.__dict__:
            raise InputError(
                f"{cls.__name__} defines training_step, which is final: mean of w * sample_losses + penalty.\n"
                "  State the loss in sample_losses and penalty; scores and refits are of the function they make up."
            )

    @abstractmethod
    def sample_losses(self, batch: Batch) -> Float[Tensor, " b"]:
        """Computes ℓ of each sample of the batch, nats, unreduced, without the penalty."""

    @abstractmethod
    def penalty(self) -> Float[Tensor, ""]:
        """Computes the penalty R(θ), e.g. ½λ‖θ‖², a scalar tensor, nats; return `zeros(())` if there is none."""

    def strong_convexity(self) -> float | None:
        """Returns a known μ > 0 with ∇²J ⪰ μI everywhere, for error bounds; None if no such μ is known."""
        return None

    @final
    def training_step(self, batch: Batch, _: int) -> Float[Tensor, ""]:
        ids, batch = sample_ids(batch), as_made(batch)
        losses = self.sample_losses(batch)
        loss = (self._weights_of(ids, batch, losses) * losses).mean() + self.penalty()
        if self._trainer is not None and self.trainer.logger is not None:
            self.log("J_batch", loss.detach(), prog_bar=True, batch_size=len(losses))
        return loss

    def on_train_start(self) -> None:
        """Refuses training settings under which the function trained would not be J, or L-BFGS would not work.

        Raises:
            InputError: If L-BFGS is used with mini-batches, accumulation, clipping or reduced precision; or if an
                optimizer has weight decay, unless the decay is decoupled (AdamW) and the steps, which then contain it,
                are recorded.
        """
        if any(isinstance(o, torch.optim.LBFGS) for o in self.trainer.optimizers):
            _refuse_for_lbfgs(self.trainer)
        recorded = any(getattr(callback, "records_steps", False) for callback in self.trainer.callbacks)  # type: ignore[attr-defined]
        decays = [
            g["weight_decay"]
            for o in self.trainer.optimizers
            for g in o.param_groups
            if g.get("weight_decay") and not (recorded and decoupled(o, g))
        ]
        if decays:
            raise InputError(
                f"The optimizer decays weights (weight_decay = {decays[0]}), which J does not contain: the curvature "
                "would be that of another function than the one trained.\n"
                "  Set weight_decay=0 (torch's AdamW has 0.01 by default) and state the penalty in `penalty`."
            )

    def _weights_of(self, ids: Tensor | None, batch: Batch, losses: Tensor) -> Float[Tensor, " b"]:
        if ids is None:
            if len(self.sample_weights.ids):
                raise InputError(
                    f"Removing samples {self.sample_weights.ids.tolist()[:5]} needs batches that carry sample ids; "
                    f"this one, a {type(batch).__name__}, has none.\n"
                    "  Give each sample its id: key `idx` or `sample_index`, or the third item of (x, y, idx)."
                )
            return torch.full(
                (batch_size(batch),), self.sample_weights.default, dtype=losses.dtype, device=losses.device
            )
        return self.sample_weights.of(ids, losses.dtype)


def _refuse_for_lbfgs(trainer: L.Trainer) -> None:
    unsuitable: dict[str, Any] = {
        f"{trainer.num_training_batches} batches an epoch (batch_size < n)": trainer.num_training_batches != 1,
        f"accumulate_grad_batches = {trainer.accumulate_grad_batches}": trainer.accumulate_grad_batches != 1,
        # 1 or 1.0: Lightning takes both
        f"gradient_clip_val = {trainer.gradient_clip_val or 0:g}": bool(trainer.gradient_clip_val),
        f"precision = {trainer.precision}": str(trainer.precision) not in ("32-true", "64-true"),
    }
    found = [setting for setting, refused in unsuitable.items() if refused]
    if found:
        raise InputError(
            f"Optimizer lbfgs minimises one fixed function: it needs the full batch, no accumulation, no clipping and "
            f"full precision; got {'; '.join(found)}.\n"
            "  Raise --data.batch_size to the number of training samples and leave the others out, or use "
            "--model.optimizer sgd or adamw."
        )
