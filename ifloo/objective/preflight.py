"""What must hold before any score means something, checked once at the door."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad, vmap

from ifloo.errors import IflooError, InputError, summarise
from ifloo.objective.batches import Batch, batch_size, slice_batch
from ifloo.objective.functional import scoring
from ifloo.objective.layers import kinds, places, recurrent_layers
from ifloo.objective.objective import Objective

ROWS = 16  # samples looked at one by one
NOTICEABLE = 0.1  # ‖∇J‖ in units of what one sample contributes to it


@dataclass(frozen=True)
class Stationarity:
    """How close θ is to a minimum, on the scale that matters: what one sample adds to the gradient.

    Attributes:
        grad_norm: ‖∇J(θ)‖.
        sample_share: mean ‖∇ℓ_i(θ)‖ / n over a few samples.
    """

    grad_norm: float
    sample_share: float

    @property
    def warning(self) -> str | None:
        """None where ‖∇J‖ is small beside one sample's share."""
        if self.grad_norm <= NOTICEABLE * self.sample_share:
            return None
        return (
            f"the checkpoint is not at a minimum: |grad J| = {self.grad_norm:.2e}, while one sample contributes about "
            f"{self.sample_share:.2e}. Influence is the derivative of the minimiser; away from it the scores predict "
            "no refit. Train longer (optimizer lbfgs is finished to 1e-10), or take the scores as a ranking at best."
        )


def preflight(objective: Objective, theta: Float[Tensor, " p"]) -> Stationarity:
    """Checks that ℓ_i belongs to sample i alone and is the same at each call; measures how close θ is to a minimum.

    Raises:
        InputError: a sample's loss depends on its batch, is not reproducible, is not finite or not one number a sample,
            or torch.func can compute it or its gradient not at all.
    """
    _, batch = next(iter(objective.data.with_ids()))
    few = slice_batch(batch, slice(0, ROWS))
    b = batch_size(few)
    with scoring(objective.losses.module):
        together = _together(objective, theta, few)
        _check_losses(together, b)
        again = objective.losses.sample_losses(theta, few)
        _check_same(together, again, "at two calls on the same batch", "a random layer (dropout) is on while scoring")
        alone = _one_by_one(objective, theta, few)
        _check_same(
            together, alone, "alone and in a batch", "BatchNorm in train mode, or a loss taken across the batch"
        )
        _check_whole(objective, theta, few, together)
        gradients = _gradients(objective, theta, few)
        share = float(gradients.norm(dim=1).mean()) / objective.n
        return Stationarity(float(objective.gradient(theta).norm()), share)


def _check_whole(objective: Objective, theta: Tensor, few: Batch, losses: Tensor) -> None:
    """A training step run on batches of one must be, on a batch, the mean of these: else ℓ_i is of another function.

    Raises:
        InputError: it is not.
    """
    if not objective.losses.contract.one_by_one:
        return
    whole, mean = objective.losses.step_loss(theta, few), losses.mean()
    if (whole - mean).abs() > rounding(mean):
        raise InputError(
            f"training_step on a batch of {len(losses)} gives {float(whole):.9g}, the mean over its samples as batches "
            f"of one is {float(mean):.9g}: its loss is no mean of losses that each belong to one sample.\n"
            "  Its cause is a loss across the batch (contrastive, class-weighted, BatchNorm) or a sum in place of the "
            "mean. Give the losses as a function of your own: sample_losses(model, batch) -> [b]."
        )


def _together(objective: Objective, theta: Tensor, few: Batch) -> Tensor:
    try:
        return objective.losses.sample_losses(theta, few)
    except (RuntimeError, ValueError) as error:
        if isinstance(error, IflooError):
            raise
        raise InputError(
            f"The losses of the first {batch_size(few)} samples cannot be computed: {error}\n"
            "  A loss taken from training_step runs it on batches of one under torch.func.vmap: no BatchNorm by batch "
            "statistics, no `.item()`, no metric that is updated there. Or give the losses as a function of your own."
            + _suspects(objective)
        ) from error


def _gradients(objective: Objective, theta: Tensor, few: Batch) -> Tensor:
    try:
        gradients: Tensor = vmap(grad(objective.losses.loss_alone), in_dims=(None, 0))(theta, few)
        return gradients
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"The gradient of one sample's loss cannot be computed (torch.func.vmap of grad): {error}\n"
            "  Its cause is most often a buffer or metric that the forward pass changes in place, or an operation "
            "without a rule for torch.func." + _suspects(objective)
        ) from error


def _suspects(objective: Objective) -> str:
    """A line more where the module has layers that cannot work."""
    module = objective.losses.module
    layers = recurrent_layers(module)
    return f"\n  torch.func has no rule for {kinds(layers)} ({summarise(places(module, layers))})." if layers else ""


def _one_by_one(objective: Objective, theta: Tensor, few: Batch) -> Tensor:
    try:
        return vmap(lambda sample: objective.losses.loss_alone(theta, sample))(few)
    except (RuntimeError, ValueError) as error:  # what torch.func.vmap and layers such as BatchNorm raise
        raise InputError(
            f"The loss of one sample cannot be computed alone (torch.func.vmap over batches of one): {error}\n"
            "  Its cause is most often BatchNorm in train mode, or a forward pass that depends on values (`.item()`, "
            "`if` on a tensor). Per-sample influence needs a loss that belongs to the sample alone."
            + _suspects(objective)
        ) from error


def _check_losses(losses: Tensor, b: int) -> None:
    if losses.shape != (b,):
        raise InputError(
            f"sample_losses must return one loss a sample, shape [{b}] for a batch of {b}; got {list(losses.shape)}.\n"
            "  Leave out the reduction (reduction='none') and sum over everything but the first dimension."
        )
    if not torch.isfinite(losses).all():
        where = int((~torch.isfinite(losses)).nonzero()[0])
        raise InputError(
            f"sample_losses gave {float(losses[where])} for row {where} of the first batch.\n"
            "  The checkpoint's weights or this sample are not finite; no score can be computed."
        )


def rounding(value: Tensor) -> Tensor:
    """By how much two ways to the same losses may part, as the order of additions only: 1e3 roundings of the dtype."""
    return 1e3 * torch.finfo(value.dtype).eps * (1 + value.abs())


def _check_same(a: Tensor, b: Tensor, when: str, cause: str) -> None:
    tolerance, apart = rounding(a), (a - b).abs()
    if (apart > tolerance).any():
        worst = int((apart / tolerance).argmax())
        raise InputError(
            f"The loss of a sample differs {when}: {float(a[worst]):.9g} and {float(b[worst]):.9g} (row {worst}).\n"
            f"  Its cause is most often {cause}. Per-sample influence needs a loss that belongs to the sample alone."
        )
