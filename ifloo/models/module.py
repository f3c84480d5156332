"""Base class of models that meet the contract: one loss serves training, scoring and refits."""

from __future__ import annotations

from typing import Protocol, final, runtime_checkable

import lightning as L
import torch
from jaxtyping import Float
from torch import Tensor

from ifloo.errors import InputError
from ifloo.models.decay import decoupled
from ifloo.models.fit_settings import FitSettings
from ifloo.objective.batches import Batch, batch_size, sample_ids, without_ids
from ifloo.objective.protocol import BatchT_contra, ModelContract
from ifloo.objective.weights import SampleWeights


@runtime_checkable
class RecordsSteps(Protocol):
    """A callback that repeats or records each optimizer step.

    Attributes:
        records_steps: Whether steps are repeated or recorded; decoupled weight decay is then part of the step, and
            allowed.
    """

    records_steps: bool


class SampleLossModule(L.LightningModule, ModelContract[BatchT_contra]):
    """A LightningModule that states ℓ_i and R separately, so that J(θ; w) is known and every sample has a weight.

    `training_step` is final: mean of w[id] · ℓ + R. The penalty belongs in `penalty`, not in the optimizer: otherwise
    the curvature is that of another function than the one trained.

    The optional members of the contract, such as `strong_convexity`, have the defaults of `ModelContract`. A class may
    name the form of its batches: `class MyModel(SampleLossModule[dict[str, Tensor]])`.

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
        if cls.training_step is not SampleLossModule.training_step:
            raise InputError(
                f"{cls.__name__} defines training_step, which is final: mean of w * sample_losses + penalty.\n"
                "  State the loss in sample_losses and penalty; scores and refits are of the function they make up."
            )

    @final
    def training_step(self, batch: Batch, _: int) -> Float[Tensor, ""]:
        loss = self.weighted_loss(batch) + self.penalty()
        if self._trainer is not None and self.trainer.logger is not None:
            ids = sample_ids(batch)
            self.log("J_batch", loss.detach(), prog_bar=True, batch_size=batch_size(batch) if ids is None else len(ids))
        return loss

    def weighted_loss(self, batch: Batch) -> Float[Tensor, ""]:
        """Computes the mean of w[id] · ℓ over a batch, nats.

        Raises:
            InputError: Samples have weights of their own, and the batch carries no ids.
        """
        losses: Tensor = self.sample_losses(without_ids(batch))
        return (self._weights_of(sample_ids(batch), without_ids(batch), losses) * losses).mean()

    def on_train_start(self) -> None:
        """Refuses training settings under which the function trained would not be J, or L-BFGS would not work.

        Raises:
            InputError: If L-BFGS is used with mini-batches, accumulation, clipping or reduced precision; or if an
                optimizer has weight decay, unless the decay is decoupled (AdamW) and the steps, which then contain it,
                are recorded.
        """
        if any(isinstance(o, torch.optim.LBFGS) for o in self.trainer.optimizers):
            refuse_for_lbfgs(FitSettings.of(self.trainer))
        recorded = any(isinstance(c, RecordsSteps) and c.records_steps for c in callbacks_of(self.trainer))
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
                    "  Give each sample its id under key `idx` or `sample_index`, or load the batches by "
                    "ifloo.objective.loaders.identified."
                )
            return torch.full(
                (batch_size(batch),), self.sample_weights.default, dtype=losses.dtype, device=losses.device
            )
        return self.sample_weights.of(ids, losses.dtype)


def callbacks_of(trainer: L.Trainer) -> list[L.Callback]:
    """Returns the callbacks of a Trainer, in a list that can be added to."""
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it undeclared
    return callbacks


def refuse_for_lbfgs(settings: FitSettings) -> None:
    """Refuses settings under which L-BFGS does not minimise one fixed function.

    Raises:
        InputError: If the fit has mini-batches, accumulation, clipping or reduced precision.
    """
    unsuitable: dict[str, bool] = {
        f"{settings.batches} batches an epoch (batch_size < n)": settings.batches != 1,
        f"accumulate_grad_batches = {settings.accumulate_grad_batches}": settings.accumulate_grad_batches != 1,
        # 1 or 1.0: Lightning takes both
        f"gradient_clip_val = {settings.gradient_clip_val or 0:g}": bool(settings.gradient_clip_val),
        f"precision = {settings.precision}": settings.reduced,
    }
    found = [setting for setting, refused in unsuitable.items() if refused]
    if found:
        raise InputError(
            f"Optimizer lbfgs minimises one fixed function: it needs the full batch, no accumulation, no clipping and "
            f"full precision; got {'; '.join(found)}.\n"
            "  Raise --data.batch_size to the number of training samples and leave the others out, or use "
            "--model.optimizer sgd or adamw."
        )
