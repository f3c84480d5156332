"""Inputs of a linear head, and first and second derivatives of the sample losses in its outputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import grad, vjp, vmap

from ifloo.curvature.head_layer import ROUNDING, HeadLayer
from ifloo.errors import InputError
from ifloo.objective.batches import Batch
from ifloo.objective.functional import scoring


@dataclass(frozen=True)
class HeadRows:
    """Inputs and residuals of some samples, with t positions per sample (t = 1 without a sequence).

    Attributes:
        ids: Sample ids, `[b]`.
        inputs: Inputs of the head, `[b, t, d]`, including the constant 1 of a bias.
        residuals: Derivatives ∂ℓ_i/∂z at θ̂, `[b, t, c]`, with ∇ℓ_i = Σ_t residual_t ⊗ input_t.
        positions: Shape of the positions in the layer's own output.
    """

    ids: Int[Tensor, " b"]
    inputs: Float[Tensor, "b t d"]
    residuals: Float[Tensor, "b t c"]
    positions: torch.Size

    @classmethod
    def of(cls, head: HeadLayer, theta: Float[Tensor, " p"], ids: Tensor, batch: Batch) -> HeadRows:
        """Computes the rows by running the samples through the module once."""
        inputs, positions = head.inputs(theta, batch)
        residuals = residuals_at(head, theta, head.outputs(theta, inputs), batch, positions)
        return cls(ids, inputs, residuals, positions)


def residuals_at(
    head: HeadLayer, theta: Float[Tensor, " p"], outputs: Float[Tensor, "b t c"], batch: Batch, positions: torch.Size
) -> Float[Tensor, "b t c"]:
    """Returns ∂ℓ_i/∂z of each sample at these outputs."""
    with scoring(head.losses.module):
        slopes: Tensor = grad(lambda z: head.losses_of(theta, z, batch, positions).sum())(outputs)
    return slopes


def second_derivatives(
    head: HeadLayer, theta: Float[Tensor, " p"], outputs: Float[Tensor, "b t c"], batch: Batch, positions: torch.Size
) -> Float[Tensor, "b t c c"]:
    """Returns ∂²ℓ_i/∂z∂z at each position, exactly, from one product per output.

    Raises:
        InputError: The loss couples positions of a sample, or samples.
    """

    def first(z: Tensor) -> Tensor:
        slopes: Tensor = grad(lambda y: head.losses_of(theta, y, batch, positions).sum())(z)
        return slopes

    with scoring(head.losses.module):
        pull = vjp(first, outputs)[1]
        unit = torch.eye(head.classes, dtype=outputs.dtype, device=outputs.device)
        S: Tensor = vmap(lambda e: pull(e.expand_as(outputs))[0])(unit).movedim(0, -1)
        # If the loss coupled positions, S would be a sum over them; a product with a random vector reveals that.
        draw = torch.Generator().manual_seed(0)
        v = torch.randn(outputs.shape, generator=draw, dtype=torch.float64).to(outputs)
        exact, by_blocks = pull(v)[0], (S @ v.unsqueeze(-1)).squeeze(-1)
    if (exact - by_blocks).norm() > ROUNDING.get(outputs.dtype, 1e-4) * exact.norm():
        raise InputError(
            f"The loss couples the positions of a sample, or samples of a batch: the second derivative in the outputs "
            f"of layer {head.name!r} is not one {head.classes} x {head.classes} block for each position.\n"
            "  Use curvature Hessian or GaussNewton, which take any loss."
        )
    return S


def refuse_other_uses(head: HeadLayer, theta: Float[Tensor, " p"], batch: Batch) -> None:
    """Checks that the losses depend on θ only through the outputs of the head.

    The losses at other weights are compared with those of the head alone at the same weights.

    Raises:
        InputError: They differ: θ enters the losses elsewhere too, for example in the inputs of the head.
    """
    draw = torch.Generator().manual_seed(0)
    moved = theta + theta.std().clamp_min(0.1) * torch.randn(theta.shape, generator=draw, dtype=torch.float64).to(theta)
    inputs, positions = head.inputs(theta, batch)
    with torch.no_grad(), scoring(head.losses.module):
        of_module = head.losses.sample_losses(moved, batch)
        of_head = head.losses_of(theta, head.outputs(moved, inputs), batch, positions)
    difference = (of_module - of_head).abs().max()
    if not difference <= ROUNDING.get(theta.dtype, 1e-4) * (1 + of_module.abs().max()):
        raise InputError(
            f"The losses depend on the parameters of layer {head.name!r} other than through its output (they differ "
            f"by {float(difference):.1e} nats at other weights): its input, or a term of the loss, depends on them "
            f"too.\n"
            "  Use curvature Hessian or GaussNewton, which take any model, or attribute other parameters."
        )
