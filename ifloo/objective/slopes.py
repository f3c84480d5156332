"""Slopes of sample losses along directions, ∇ℓ_i · v: by forward-mode derivatives, or by backward passes alone."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import jvp, vjp

from ifloo.objective.forms import Batch
from ifloo.objective.functional import FunctionalLosses


def forward_slopes(
    losses: FunctionalLosses, theta: Float[Tensor, " p"], batch: Batch, direction: Float[Tensor, " p"]
) -> Float[Tensor, " b"]:
    """Returns ∇ℓ_i(θ) · v of each sample as the jvp of the vector of sample losses."""
    slopes: Tensor = jvp(lambda at: losses.sample_losses(at, batch), (theta,), (direction,))[1]
    return slopes


def backward_slopes(
    losses: FunctionalLosses, theta: Float[Tensor, " p"], batch: Batch, directions: Float[Tensor, "m p"]
) -> Float[Tensor, "m b"]:
    """Returns ∇ℓ_i(θ) · v for each direction v, from backward passes alone: J v = ∂/∂u ⟨Jᵀu, v⟩.

    J is what `backward` applies: unlike `jvp`, this respects `torch.no_grad()` and tensor hooks as training does
    (Christianson 1992, section 3).
    """
    values, pull = vjp(lambda at: losses.sample_losses(at, batch), theta)[:2]
    push = vjp(lambda u: pull(u)[0], torch.zeros_like(values))[1]
    return torch.stack([push(direction)[0] for direction in directions])


def summed_slope(
    losses: FunctionalLosses, theta: Float[Tensor, " p"], batch: Batch, direction: Float[Tensor, " p"]
) -> Float[Tensor, ""]:
    """Returns Σ ∇ℓ_i(θ) · v from one gradient of the sum, in the way that the losses are differentiated.

    Code with a forward-mode derivative may lack this one: activation checkpointing hooks into what is recorded.
    """
    slope: Tensor = losses.gradient_and_value(lambda at: losses.sample_losses(at, batch).sum(), theta)[0]
    return slope @ direction


def random_unit(like: Float[Tensor, " p"], seed: int) -> Float[Tensor, " p"]:
    """Returns a random direction of length 1, the same on every device."""
    drawn = torch.randn(like.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(like)
    unit: Tensor = drawn / drawn.norm()
    return unit


def unit_along(gradient: Float[Tensor, " p"]) -> Float[Tensor, " p"]:
    """Returns the direction of a gradient, of length 1; zero for a gradient of zero."""
    unit: Tensor = gradient / gradient.norm().clamp_min(torch.finfo(gradient.dtype).tiny)
    return unit
