"""Checks that must pass before any score is meaningful, run once before scoring."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import vmap
from torch.utils.data import DataLoader

from ifloo.errors import IflooError, InputError, summarise
from ifloo.objective.batches import (
    Batch,
    TrainingData,
    batch_size,
    slice_batch,
    to_device,
    without_factors,
    without_ids,
)
from ifloo.objective.causes import causes_of_other_mean
from ifloo.objective.certificate import ObjectiveCertificate
from ifloo.objective.drawn_samples import SEED
from ifloo.objective.functional import Path, scoring
from ifloo.objective.layers import kinds, places, recurrent_layers
from ifloo.objective.loaders import collated_whole
from ifloo.objective.objective import Objective
from ifloo.objective.paths import not_backward, not_finite
from ifloo.objective.rounding import Rounding
from ifloo.objective.seeded_draws import drawing
from ifloo.objective.singles import Singles
from ifloo.objective.slopes import forward_slopes, random_unit, unit_along

OTHER_DRAW = -1
ROWS = 16  # number of samples that are checked one by one
NOTICEABLE = 0.1  # ratio of ‖∇J‖ to the contribution of one sample above which there is a warning


_TRAIN_LONGER = "Train longer (`ifloo fit` by LBFGS ends at 1e-10), or take the scores as a ranking at best."


@dataclass(frozen=True)
class Stationarity:
    """Distance of θ from a minimum, on the scale of what one sample contributes to the gradient.

    Attributes:
        grad_norm: Gradient norm ‖∇J(θ)‖.
        sample_share: Mean of ‖∇ℓ_i(θ)‖ / n over the checked samples.
        certificate: Comparison of J with what was trained, which rules causes of a distance out; None without one.
    """

    grad_norm: float
    sample_share: float
    certificate: ObjectiveCertificate | None = None

    @property
    def warning(self) -> str | None:
        """Warning text if ‖∇J‖ is not small relative to the share of one sample, or else None."""
        if self.grad_norm <= NOTICEABLE * self.sample_share:
            return None
        return (
            f"the checkpoint is not at a minimum: |grad J| = {self.grad_norm:.2e}, while one sample contributes about "
            f"{self.sample_share:.2e}. Influence is the derivative of the minimiser; away from it the scores predict "
            f"no refit. {_TRAIN_LONGER if self.certificate is None else self.certificate.causes_of_a_distance}"
        )


def preflight(
    objective: Objective, theta: Float[Tensor, " p"], certificate: ObjectiveCertificate | None = None
) -> Stationarity:
    """Checks that ℓ_i belongs to sample i alone and is the same at each call; measures how close θ is to a minimum.

    The samples that are checked one by one are drawn from all training data.

    Args:
        objective: Objective J.
        theta: Parameters θ, `[p]`.
        certificate: Comparison of J with what was trained, which takes the place of a check that a training step on a
            batch has the mean of the losses of its samples.

    Raises:
        InputError: The loss of a sample depends on its batch, is not reproducible, not finite or not a single number,
            or cannot be differentiated.
    """
    ids, few, weights = _drawn(objective)
    with scoring(objective.losses.module):
        in_batch = _losses_in_batch(objective, theta, few)
        _check_losses(in_batch, ids)
        allowed = Rounding.of(objective.losses, theta, few).of_losses(in_batch)
        again = objective.losses.sample_losses(theta, few)
        cause = "a random layer (dropout) that is on while scoring"
        _check_same(in_batch, again, allowed, "at two calls on the same batch", cause)
        alone = _losses_alone(objective, theta, few)
        cause = "BatchNorm in train mode, or a loss taken across the batch"
        _check_same(in_batch, alone, allowed, "alone and in a batch", cause)
        if certificate is None:
            _check_step_loss(objective, theta, few, weights)
        gradients = _gradients(objective, theta, few)
        share = float(gradients.norm(dim=1).mean()) / objective.n
        value, slope = objective.value_and_gradient(theta)
        if not bool(torch.isfinite(value) & torch.isfinite(slope).all()):
            _refuse_not_finite(objective, theta)
        if objective.losses.path is Path.FORWARD and not _forward_is_backward(objective, theta, slope, few):
            objective.losses.take(Path.BACKWARD, not_backward("over all samples, "))
        return Stationarity(float(slope.norm()), share, certificate)


def _drawn(objective: Objective) -> tuple[Tensor, Batch, Tensor | None]:
    """Returns ids, batch and weights a_i of `ROWS` samples drawn from all data; of a subsample, its first ones."""
    data = objective.data
    if isinstance(data, TrainingData):
        positions = _positions(data)
        weights = None if data.in_batch is None else data.in_batch[positions]
        return data.ids[positions], data.sample(positions), weights
    ids, batch = next(iter(data.with_ids()))
    return ids[:ROWS], slice_batch(batch, slice(0, ROWS)), None


def _positions(data: TrainingData) -> Tensor:
    return torch.randperm(data.n, generator=torch.Generator().manual_seed(SEED))[:ROWS]


def _forward_is_backward(objective: Objective, theta: Tensor, slope: Tensor, few: Batch) -> bool:
    """Tells whether forward-mode derivatives of all samples add up to the gradient of J, which the backward pass gave.

    The drawn samples may hold none of those whose loss stops a gradient.
    """
    losses, v = objective.losses, unit_along(slope) + random_unit(slope, SEED)
    expected = (slope - losses.gradient_and_value(losses.penalty, theta)[0]) @ v
    total, scale = torch.zeros_like(expected), torch.zeros_like(expected)
    for ids, batch in objective.data.with_ids():
        along = forward_slopes(losses, theta, batch, v)
        shares = objective.weights.of(ids, along.dtype) * along / objective.n
        total, scale = total + shares.sum(), scale + shares.abs().sum()
    allowed = Rounding.of(losses, theta, few, v).of_slopes(scale + expected.abs() + slope.norm())
    return bool((total - expected).abs() <= allowed)


def _refuse_not_finite(objective: Objective, theta: Tensor) -> None:
    for ids, batch in objective.data.with_ids():
        losses = objective.losses.sample_losses(theta, batch)
        if not bool(torch.isfinite(losses).all()):
            k = int((~torch.isfinite(losses)).nonzero()[0])
            raise InputError(not_finite(int(ids[k]), float(losses[k])))
    raise InputError(
        "The gradient of J is not finite, though the loss of every training sample is.\n"
        "  A derivative overflows or is undefined at these weights (a root or a norm at 0); no score can be computed."
    )


def _check_step_loss(objective: Objective, theta: Tensor, few: Batch, weights: Tensor | None) -> None:
    """Checks that a training step on a batch gives the mean of the training steps on batches of one.

    Otherwise ℓ_i would belong to another objective than the one that was trained.

    Raises:
        InputError: The two differ.
    """
    if not objective.losses.contract.one_by_one:
        return
    batch, plain = _whole(objective, few), without_factors(few)
    if batch is None:
        return
    whole, losses = objective.losses.step_loss(theta, batch), _losses_in_batch(objective, theta, plain)
    a = torch.ones_like(losses) if weights is None else weights.to(losses)
    mean, allowed = (a * losses).sum() / a.sum(), Rounding.of(objective.losses, theta, plain).of_losses(losses)
    most = (a * allowed).sum() / a.sum()
    if not (whole - mean).abs() <= most:
        with drawing(OTHER_DRAW):  # what hooks draw for a batch is not what they draw for its samples
            if not (objective.losses.step_loss(theta, batch) - whole).abs() <= most:
                return
        seen = causes_of_other_mean(objective.losses.module, without_ids(batch), float(whole / mean), len(losses))
        raise InputError(
            f"training_step on a batch of {len(losses)} gives {float(whole):.9g}, the mean over its samples as batches "
            f"of one is {float(mean):.9g}: its loss is not a mean of losses of single samples.\n"
            f"  {seen}\n"
            "  Give the losses as a function of your own: sample_losses(model, batch) -> [b]. A contrastive loss has "
            "none."
        )


def _whole(objective: Objective, few: Batch) -> Batch | None:
    """Returns the drawn samples in one batch of the user's collate function; None where each is a batch already."""
    inner = without_ids(few)
    if not isinstance(inner, Singles):
        return few
    data = objective.data
    if inner.whole is not None or not isinstance(data, TrainingData) or not isinstance(data.loader, DataLoader):
        return inner.whole
    found = collated_whole(data.loader, _positions(data))
    return None if found is None else to_device(found, data.device, data.dtype)


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
        return objective.losses.sample_gradients(theta, few)
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
    losses = objective.losses
    if losses.path is Path.LOOP or not losses.vmapped or isinstance(without_ids(few), Singles):
        rows = (slice_batch(few, slice(k, k + 1)) for k in range(batch_size(few)))
        return torch.cat([losses.sample_losses(theta, one) for one in rows])
    try:
        return vmap(lambda sample: objective.losses.loss_alone(theta, sample))(few)
    except (RuntimeError, ValueError) as error:  # raised by torch.func.vmap and by layers such as BatchNorm
        raise InputError(
            f"The loss of one sample cannot be computed alone (torch.func.vmap over batches of one): {error}\n"
            "  Its cause is most often BatchNorm in train mode, or a forward pass that depends on values (`.item()`, "
            "`if` on a tensor). Per-sample influence needs a loss that belongs to the sample alone."
            + _unsupported_layers(objective)
        ) from error


def _check_losses(losses: Tensor, ids: Tensor) -> None:
    b = len(ids)
    if losses.shape != (b,):
        raise InputError(
            f"sample_losses must return one loss a sample, shape [{b}] for a batch of {b}; got {list(losses.shape)}.\n"
            "  Leave out the reduction (reduction='none') and sum over everything but the first dimension."
        )
    if not torch.isfinite(losses).all():
        k = int((~torch.isfinite(losses)).nonzero()[0])
        raise InputError(not_finite(int(ids[k]), float(losses[k])))


def _check_same(a: Tensor, b: Tensor, allowed: Tensor, when: str, cause: str) -> None:
    difference = (a - b).abs()
    if not (difference <= allowed).all():
        worst = int((difference - allowed).nan_to_num(torch.inf).argmax())
        raise InputError(
            f"The loss of a sample differs {when}: {float(a[worst]):.9g} and {float(b[worst]):.9g} (row {worst}).\n"
            f"  Its cause is most often {cause}. Per-sample influence needs a loss that belongs to the sample alone."
        )
