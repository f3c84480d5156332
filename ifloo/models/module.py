"""The contract as a LightningModule: one loss serves training, scoring and refits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import final

import lightning as L
import torch
from jaxtyping import Float
from torch import Tensor

from ifloo.errors import InputError
from ifloo.models.decay import decoupled
from ifloo.models.fit_settings import FitSettings
from ifloo.objective.batches import Batch, as_made, batch_size, sample_ids
from ifloo.objective.weights import SampleWeights


class SampleLossModule(L.LightningModule, ABC):
    """A LightningModule that states ℓ_i and R apart, so that J(θ; w) is known and every sample has a weight.

    `training_step` is final: mean of w[id] · ℓ + R. The penalty belongs in `penalty`, not in the optimizer: otherwise
    the curvature is that of another function than the one trained.

    Attributes:
        sample_weights: w, by sample id; all 1 unless a refit sets it.
    """

    def __init__(self) -> None:
        """Starts with every weight 1."""
        super().__init__()
        self.sample_weights = SampleWeights()

    def __init_subclass__(cls) -> None:
        """Refuses a training loss that is not J.

        Raises:
            InputError: the subclass has a `training_step` of its own.
        """
        super().__init_subclass__()
        if "training_step" in cls.__dict__:
            raise InputError(
                f"{cls.__name__} defines training_step, which is final: mean of w * sample_losses + penalty.\n"
                "  State the loss in sample_losses and penalty; scores and refits are of the function they make up."
            )

    @abstractmethod
    def sample_losses(self, batch: Batch) -> Float[Tensor, " b"]:
        """ℓ of each sample of the batch, nats, unreduced, without the penalty."""

    @abstractmethod
    def penalty(self) -> Float[Tensor, ""]:
        """R(θ), e.g. ½λ‖θ‖²; zero is said aloud."""

    def strong_convexity(self) -> float | None:
        """A known μ > 0 with ∇²J ⪰ μI everywhere, for error bounds; None where none is known."""
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
        """Refuses what Lightning accepts in silence and L-BFGS cannot do.

        Raises:
            InputError: L-BFGS with mini-batches, accumulation, clipping or reduced precision; any optimizer with weight
                decay, unless it is decoupled (AdamW) and the steps are recorded, of which it is then a part.
        """
        if any(isinstance(o, torch.optim.LBFGS) for o in self.trainer.optimizers):
            refuse_for_lbfgs(FitSettings.of(self.trainer))
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


def refuse_for_lbfgs(settings: FitSettings) -> None:
    """Refuses settings under which L-BFGS does not minimise one fixed function.

    Raises:
        InputError: mini-batches, accumulation, clipping or reduced precision.
    """
    asked: dict[str, bool] = {
        f"{settings.batches} batches an epoch (batch_size < n)": settings.batches != 1,
        f"accumulate_grad_batches = {settings.accumulate_grad_batches}": settings.accumulate_grad_batches != 1,
        # 1 or 1.0: Lightning takes both
        f"gradient_clip_val = {settings.gradient_clip_val or 0:g}": bool(settings.gradient_clip_val),
        f"precision = {settings.precision}": settings.reduced,
    }
    found = [what for what, refused in asked.items() if refused]
    if found:
        raise InputError(
            f"Optimizer lbfgs minimises one fixed function: it needs the full batch, no accumulation, no clipping and "
            f"full precision; got {'; '.join(found)}.\n"
            "  Raise --data.batch_size to the number of training samples and leave the others out, or use "
            "--model.optimizer sgd or adamw."
        )
