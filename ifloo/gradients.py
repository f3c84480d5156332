"""Per-sample gradients by `vmap(grad)`, and their products with directions by forward-mode `jvp`.

All functions of this file must be called within `scoring(module)`, which turns random layers off and selects kernels
that torch.func can differentiate.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad, jvp, vmap

from ifloo.objective.batches import Batch, batch_size, slice_batch
from ifloo.objective.functional import FunctionalLosses


def sample_gradients(losses: FunctionalLosses, theta: Float[Tensor, " p"], batch: Batch) -> Float[Tensor, "b p"]:
    """Returns ∇ℓ_i(θ) of each sample of a batch, nats per unit of each parameter.

    The result holds b · p numbers, so keep batches small.
    """
    gradients: Tensor = vmap(grad(losses.loss_alone), in_dims=(None, 0))(theta, batch)
    return gradients


def gradient_products(
    losses: FunctionalLosses, theta: Float[Tensor, " p"], batch: Batch, directions: Float[Tensor, "m p"]
) -> Float[Tensor, "m b"]:
    """Returns `directions[t] · ∇ℓ_i(θ)` of each sample i as the jvp of the vector of sample losses.

    No gradient is formed: besides the activations, this needs memory for b numbers per direction only.
    """

    def along(direction: Tensor) -> Tensor:
        product: Tensor = jvp(lambda parameters: losses.sample_losses(parameters, batch), (theta,), (direction,))[1]
        return product

    if len(directions) == 1:  # vmap over a single direction costs more than it saves
        return along(directions[0]).unsqueeze(0)
    return vmap(along)(directions)


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
