"""Inputs of a linear head, and first and second derivatives of the sample losses in its outputs, from one pass."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import grad, vjp, vmap

from ifloo.curvature.head_layer import ROUNDING, HeadLayer, filled_up, over_singles
from ifloo.errors import InputError
from ifloo.objective.batches import Batch, Identified, batch_size, without_ids
from ifloo.objective.functional import scoring
from ifloo.objective.plain import gradient, pulled, recording, second_derivative
from ifloo.objective.singles import Singles


@dataclass(frozen=True)
class HeadRows:
    """Inputs and residuals of some samples, with t positions per sample (t = 1 without a sequence).

    Attributes:
        ids: Sample ids, `[b]`.
        inputs: Inputs of the head, `[b, t, d]`, including the constant 1 of a bias.
        residuals: Derivatives ∂ℓ_i/∂z at θ̂, `[b, t, c]`, with ∇ℓ_i = Σ_t residual_t ⊗ input_t.
        positions: Former argument, without effect: the layer's own output has the shape of the positions.
    """

    ids: Int[Tensor, " b"]
    inputs: Float[Tensor, "b t d"]
    residuals: Float[Tensor, "b t c"]
    positions: torch.Size | None = None

    @classmethod
    def of(cls, head: HeadLayer, theta: Float[Tensor, " p"], ids: Tensor, batch: Batch) -> HeadRows:
        """Computes the rows by running the samples through the module once."""
        found = _derivatives(head, theta, batch, second=False)
        return cls(ids, found.inputs, found.slopes)


class _Derivatives(NamedTuple):
    """Inputs x of the layer and derivatives of losses in its outputs, of one sample or of several.

    Attributes:
        inputs: x, `[*b, t, d]`.
        slopes: First derivatives, `[*b, t, c]`.
        second: Second derivatives at each position, `[*b, t, c, c]`.
        exact: Product of all second derivatives, those between positions too, with a random vector, `[*b, t, c]`.
        by_blocks: The same product without those between positions.
    """

    inputs: Tensor
    slopes: Tensor
    second: Tensor
    exact: Tensor
    by_blocks: Tensor


def second_derivatives(
    head: HeadLayer, theta: Float[Tensor, " p"], ids: Tensor, batch: Batch
) -> tuple[HeadRows, Float[Tensor, "b t c c"]]:
    """Returns the rows of some samples and ∂²ℓ_i/∂z∂z at each position, exactly, from one product per output.

    The samples run through the module once.

    Raises:
        InputError: The loss couples positions of a sample, or samples.
    """
    found = _derivatives(head, theta, batch, second=True)
    # If the loss coupled positions, S would be a sum over them; a product with a random vector reveals that.
    if (found.exact - found.by_blocks).norm() > ROUNDING.get(theta.dtype, 1e-4) * found.exact.norm():
        raise InputError(
            f"The loss couples the positions of a sample, or samples of a batch: the second derivative in the outputs "
            f"of layer {head.name!r} is not one {head.classes} x {head.classes} block for each position.\n"
            "  Use curvature Hessian or GaussNewton, which take any loss."
        )
    return HeadRows(ids, found.inputs, found.slopes), found.second


def _derivatives(head: HeadLayer, theta: Tensor, batch: Batch, second: bool) -> _Derivatives:
    inner = without_ids(batch)
    with scoring(head.losses.module):
        if isinstance(inner, Singles):
            found = _filled_up([_of_single(head, theta, one, second) for one in inner.batches])
        else:
            shape = (batch_size(batch), head.positions(theta, batch), head.classes)
            shift, v = theta.new_zeros(shape), _drawn(shape, theta)
            if head.together(batch):
                return _of_function(partial(_total, head, theta, batch), shift, v, second)
            found = over_singles(
                lambda single, d, u: _of_function(partial(_total_alone, head, theta, single), d, u, second),
                inner,
                shift,
                v,
            )
    factors = batch.factors if isinstance(batch, Identified) else None
    return found if factors is None else _scaled(found, factors)


def _total(head: HeadLayer, theta: Tensor, batch: Batch, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the sum of the losses with outputs that are shifted from those at θ, and the inputs of the layer."""
    losses, inputs = head.passed(theta, batch, lambda x: head.outputs(theta, x) + shift)
    return losses.sum(), inputs


def _total_alone(head: HeadLayer, theta: Tensor, single: Batch, shift: Tensor) -> tuple[Tensor, Tensor]:
    return head.passed_alone(theta, single, lambda x: head.outputs(theta, x) + shift)


def _of_function(
    total: partial[tuple[Tensor, Tensor]], shift: Float[Tensor, "*b t c"], v: Float[Tensor, "*b t c"], second: bool
) -> _Derivatives:
    """Differentiates in a shift of the outputs, so that inputs and all derivatives come from one forward pass."""
    # The graph of the body is not needed; the transforms record what they need.
    with second_derivative(), torch.no_grad():
        if not second:
            slopes, inputs = grad(total, has_aux=True)(shift)
            return _Derivatives(inputs, slopes, slopes, slopes, slopes)
        slopes, pull, inputs = vjp(grad(total, has_aux=True), shift, has_aux=True)  # type: ignore[misc]  # of 3
        unit = torch.eye(shift.shape[-1], dtype=shift.dtype, device=shift.device)
        S: Tensor = vmap(lambda e: pull(e.expand_as(shift))[0])(unit).movedim(0, -1)
        return _Derivatives(inputs, slopes, S, pull(v)[0], (S @ v.unsqueeze(-1)).squeeze(-1))


def _of_single(head: HeadLayer, theta: Tensor, single: Batch, second: bool) -> _Derivatives:
    """Differentiates the loss of a batch of one by plain autograd, for code that no transform runs."""
    leaves: list[Tensor] = []

    def outputs_of(inputs: Tensor) -> Tensor:
        leaves.append(head.outputs(theta, inputs).detach().clone().requires_grad_())
        return leaves[-1]

    with recording():
        loss, inputs = head.passed_alone(theta, single, outputs_of)
        z = leaves[0]
        slopes = gradient(loss, z, create_graph=second)
        if not second:
            return _Derivatives(inputs, slopes, slopes, slopes, slopes)
        unit, v = torch.eye(head.classes, dtype=z.dtype, device=z.device), _drawn(z.shape, z)
        rows = [_pulled(slopes, z, e.expand_as(z)) for e in unit]
        S = torch.stack(rows, -1)
        return _Derivatives(inputs, slopes.detach(), S, _pulled(slopes, z, v), (S @ v.unsqueeze(-1)).squeeze(-1))


def _pulled(slopes: Tensor, z: Tensor, v: Tensor) -> Tensor:
    if not slopes.requires_grad:  # the loss is linear in the outputs
        return torch.zeros_like(z)
    return pulled(slopes, z, v)


def _drawn(shape: tuple[int, ...], like: Tensor) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(like)


def _filled_up(singles: list[_Derivatives]) -> _Derivatives:
    return _Derivatives(*(filled_up(list(parts)) for parts in zip(*singles, strict=True)))


def _scaled(found: _Derivatives, factors: Float[Tensor, " b"]) -> _Derivatives:
    c = factors.to(found.slopes)[:, None, None]
    rest = (found.slopes * c, found.second * c.unsqueeze(-1), found.exact * c, found.by_blocks * c)
    return _Derivatives(found.inputs, *rest)


def refuse_other_uses(head: HeadLayer, theta: Float[Tensor, " p"], batch: Batch) -> None:
    """Checks that the losses depend on θ only through the outputs of the head.

    The losses at other weights are compared with those of the head alone at the same weights.

    Raises:
        InputError: They differ: θ enters the losses elsewhere too, for example in the inputs of the head.
    """
    draw = torch.Generator().manual_seed(0)
    moved = theta + (theta.std().nan_to_num() or 0.1) * torch.randn(
        theta.shape, generator=draw, dtype=torch.float64
    ).to(theta)
    with torch.no_grad(), scoring(head.losses.module):
        inputs = head.inputs(theta, batch)
        of_module = head.losses.sample_losses(moved, batch)
        of_head = head.losses_of(theta, head.outputs(moved, inputs), batch)
    difference = (of_module - of_head).abs().max()
    if not difference <= ROUNDING.get(theta.dtype, 1e-4) * of_module.abs().max():
        raise InputError(
            f"The losses depend on the parameters of layer {head.name!r} other than through its output (they differ "
            f"by {float(difference):.1e} nats at other weights): its input, or a term of the loss, depends on them "
            f"too.\n"
            "  Use curvature Hessian or GaussNewton, which take any model, or attribute other parameters."
        )
