"""Per-sample gradients and their products with directions, each in the way that the losses are differentiated in.

Gradients come from `vmap(grad)` or from a loop over samples; products from forward-mode `jvp`, from backward passes
alone (`vjp` of `vjp`), or from the gradients of the loop.

All functions of this file must be called within `scoring(module)`, which turns random layers off and selects kernels
that torch.func can differentiate.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import vmap

from ifloo.objective.batches import Batch, batch_size, slice_batch
from ifloo.objective.functional import FunctionalLosses, Path
from ifloo.objective.slopes import backward_slopes, forward_slopes


def sample_gradients(losses: FunctionalLosses, theta: Float[Tensor, " p"], batch: Batch) -> Float[Tensor, "b p"]:
    """Returns ∇ℓ_i(θ) of each sample of a batch, nats per unit of each parameter.

    The result holds b · p numbers, so keep batches small.
    """
    return losses.sample_gradients(theta, batch)


def gradient_products(
    losses: FunctionalLosses, theta: Float[Tensor, " p"], batch: Batch, directions: Float[Tensor, "m p"]
) -> Float[Tensor, "m b"]:
    """Returns `directions[t] · ∇ℓ_i(θ)` of each sample i.

    Except in a loop over samples no gradient is formed: besides the activations, this needs memory for b numbers per
    direction only. In a loop one gradient is held at a time.
    """
    if losses.path is Path.LOOP:
        rows = losses.gradients_one_by_one(theta, batch)
        return torch.stack([directions @ gradient for gradient in rows], dim=1)
    if losses.path is Path.BACKWARD:
        return backward_slopes(losses, theta, batch, directions)
    if len(directions) == 1:  # vmap over a single direction costs more than it saves
        return forward_slopes(losses, theta, batch, directions[0]).unsqueeze(0)
    return vmap(lambda direction: forward_slopes(losses, theta, batch, direction))(directions)


def gradient_norms(
    losses: FunctionalLosses, theta: Float[Tensor, " p"], batch: Batch, bytes_at_once: int = 64 << 20
) -> Float[Tensor, " b"]:
    """Returns ‖∇ℓ_i(θ)‖ of each sample, computed in slices whose gradients fit into `bytes_at_once`."""
    step = max(1, bytes_at_once // (theta.numel() * theta.element_size()))
    return torch.cat(
        [
            sample_gradients(losses, theta, slice_batch(batch, slice(start, start + step))).norm(dim=1)
            for start in range(0, batch_size(batch), step)
        ]
    )
