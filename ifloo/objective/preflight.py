"""Checks that must pass before any score is meaningful, run once before scoring."""

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

ROWS = 16  # number of samples that are checked one by one
NOTICEABLE = 0.1  # ratio of ‖∇J‖ to the contribution of one sample above which there is a warning


@dataclass(frozen=True)
class Stationarity:
    """Distance of θ from a minimum, on the scale of what one sample contributes to the gradient.

    Attributes:
        grad_norm: Gradient norm ‖∇J(θ)‖.
        sample_share: Mean of ‖∇ℓ_i(θ)‖ / n over the checked samples.
    """

    grad_norm: float
    sample_share: float

    @property
    def warning(self) -> str | None:
        """Warning text if ‖∇J‖ is not small relative to the share of one sample, or else None."""
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
        InputError: The loss of a sample depends on its batch, is not reproducible, not finite or not a single number,
            or torch.func cannot compute it or its gradient.
    """
    _, batch = next(iter(objective.data.with_ids()))
    few = slice_batch(batch, slice(0, ROWS))
    b = batch_size(few)
    with scoring(objective.losses.module):
        in_batch = _losses_in_batch(objective, theta, few)
        _check_losses(in_batch, b)
        again = objective.losses.sample_losses(theta, few)
        _check_same(
            in_batch, again, "at two calls on the same batch", "a random layer (dropout) that is on while scoring"
        )
        alone = _losses_alone(objective, theta, few)
        _check_same(
            in_batch, alone, "alone and in a batch", "BatchNorm in train mode, or a loss taken across the batch"
        )
        _check_step_loss(objective, theta, few, in_batch)
        gradients = _gradients(objective, theta, few)
        share = float(gradients.norm(dim=1).mean()) / objective.n
        return Stationarity(float(objective.gradient(theta).norm()), share)


def _check_step_loss(objective: Objective, theta: Tensor, few: Batch, losses: Tensor) -> None:
    """Checks that a training step on a batch gives the mean of the training steps on batches of one.

    Otherwise ℓ_i would belong to another objective than the one that was trained.

    Raises:
        InputError: The two differ.
    """
    if not objective.losses.contract.one_by_one:
        return
    whole, mean = objective.losses.step_loss(theta, few), losses.mean()
    if (whole - mean).abs() > rounding(mean):
        raise InputError(
            f"training_step on a batch of {len(losses)} gives {float(whole):.9g}, the mean over its samples as batches "
            f"of one is {float(mean):.9g}: its loss is not a mean of losses of single samples.\n"
            "  Its cause is a loss across the batch (contrastive, class-weighted, BatchNorm) or a sum in place of the "
            "mean. Give the losses as a function of your own: sample_losses(model, batch) -> [b]."
        )


def _losses_in_batch(objective: Objective, theta: Tensor, few: Batch) -> Tensor:
    try:
        return objective.losses.sample_losses(theta, few)
    except (RuntimeError, ValueError) as error:
        if isinstance(error, IflooError):
            raise
        raise InputError(
            f"The losses of the first {batch_size(few)} samples cannot be computed: {error}\n"
            "  A loss taken from training_step runs it on batches of one under torch.func.vmap: no BatchNorm by batch "
            "statistics, no `.item()`, no metric that is updated there. Or give the losses as a function of your own."
            + _unsupported_layers(objective)
        ) from error


def _gradients(objective: Objective, theta: Tensor, few: Batch) -> Tensor:
    try:
        gradients: Tensor = vmap(grad(objective.losses.loss_alone), in_dims=(None, 0))(theta, few)
        return gradients
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"The gradient of one sample's loss cannot be computed (torch.func.vmap of grad): {error}\n"
            "  Its cause is most often a buffer or metric that the forward pass changes in place, or an operation "
            "without a rule for torch.func." + _unsupported_layers(objective)
        ) from error


def _unsupported_layers(objective: Objective) -> str:
    """Returns another line for the message if the module has layers that torch.func does not support."""
    module = objective.losses.module
    layers = recurrent_layers(module)
    return f"\n  torch.func has no rule for {kinds(layers)} ({summarise(places(module, layers))})." if layers else ""


def _losses_alone(objective: Objective, theta: Tensor, few: Batch) -> Tensor:
    try:
        return vmap(lambda sample: objective.losses.loss_alone(theta, sample))(few)
    except (RuntimeError, ValueError) as error:  # raised by torch.func.vmap and by layers such as BatchNorm
        raise InputError(
            f"The loss of one sample cannot be computed alone (torch.func.vmap over batches of one): {error}\n"
            "  Its cause is most often BatchNorm in train mode, or a forward pass that depends on values (`.item()`, "
            "`if` on a tensor). Per-sample influence needs a loss that belongs to the sample alone."
            + _unsupported_layers(objective)
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
    """Returns the tolerance for losses that differ only in the order of additions: 1e3 roundings of the dtype."""
    return 1e3 * torch.finfo(value.dtype).eps * (1 + value.abs())


def _check_same(a: Tensor, b: Tensor, when: str, cause: str) -> None:
    tolerance, difference = rounding(a), (a - b).abs()
    if (difference > tolerance).any():
        worst = int((difference / tolerance).argmax())
        raise InputError(
            f"The loss of a sample differs {when}: {float(a[worst]):.9g} and {float(b[worst]):.9g} (row {worst}).\n"
            f"  Its cause is most often {cause}. Per-sample influence needs a loss that belongs to the sample alone."
        )
