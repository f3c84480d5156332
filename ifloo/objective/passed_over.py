"""Samples that a training step on a batch passes over, and whose own loss is 0/0: all of their weight is zero.

Examples are a class of weight zero, and a text all of whose tokens are left out. Such a sample has c_i = 0 in
J = Σ_i c_i ℓ_i: it has no part in J, and its score is 0.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ifloo.objective.batches import Batch, fetch_samples, to_device
from ifloo.objective.drawn_samples import SEED, DrawnSamples
from ifloo.objective.forms import tensors_of
from ifloo.objective.functional import FunctionalLosses
from ifloo.objective.rounding import Rounding
from ifloo.objective.singles import Singles
from ifloo.objective.slopes import random_unit, unit_along


def is_empty_mean(loss: Tensor, single: Batch) -> bool:
    """Tells whether the loss of a batch of one is 0/0, though all of its numbers and the weights' are finite."""
    return bool(loss.isnan()) and all(bool(torch.isfinite(x).all()) for x in tensors_of(single))


def without_passed_over(losses: FunctionalLosses, samples: DrawnSamples, values: Tensor) -> DrawnSamples:
    """Returns the drawn samples less those that a training step on a batch passes over.

    Args:
        losses: Losses.
        samples: Drawn samples.
        values: Losses of the samples, each alone, `[b]`.

    Returns:
        The samples as they are, if one without a finite loss is not passed over.
    """
    counted = [k for k in range(len(values)) if bool(torch.isfinite(values[k]))]
    others = [k for k in range(len(values)) if k not in counted]
    if not counted or not samples.batched:
        return samples
    beside = counted[0]
    if not all(
        is_empty_mean(values[k], samples.singles[k]) and _passed_over(losses, samples, beside, k) for k in others
    ):
        return samples
    return replace(
        samples,
        rows=tuple(samples.rows[k] for k in counted),
        singles=tuple(samples.singles[k] for k in counted),
    )


def _passed_over(losses: FunctionalLosses, samples: DrawnSamples, beside: int, k: int) -> bool:
    """Tells whether a step on a batch of two has the loss and the gradient of the first sample alone, to rounding."""
    loop, theta = losses.one_by_one(), losses.theta()

    def step(*chosen: int) -> tuple[Tensor, Tensor]:
        fetched = fetch_samples(samples.dataset, [samples.rows[one] for one in chosen])  # type: ignore[arg-type]
        batch = to_device(samples.collate(fetched), samples.device, samples.dtype)
        return loop.gradient_and_value(lambda at: loop.step_loss(at, batch), theta)

    try:
        (slope, value), (of_both, loss_of_both) = step(beside), step(beside, k)
    except RuntimeError:
        return False
    direction = random_unit(theta, SEED) + unit_along(slope)
    rounding = Rounding.of(loop, theta, Singles((samples.singles[beside],)), direction)
    scale = slope.norm() * direction.norm()
    return bool((loss_of_both - value).abs() <= rounding.of_losses(value)) and bool(
        ((of_both - slope) @ direction).abs() <= rounding.of_slopes(scale)
    )
