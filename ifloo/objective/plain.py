"""Derivatives by plain autograd, one sample at a time: for any code that training can run.

Transforms of torch.func ask more of a module than training does: `vmap` takes no loop over values, no recurrent layer
and no in-place change, and `jvp` ignores `torch.no_grad()` and tensor hooks. These functions ask for what
`loss.backward()` asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from ifloo.errors import IflooError, InputError
from ifloo.objective.forms import Batch, map_tensors, with_tensors_within
from ifloo.objective.torch_texts import NO_DERIVATIVE, meaning_of
from ifloo.objective.user_code import user_code

Scalar = Callable[[Tensor], Tensor]  # [p] -> []
BATCH_OF_ONE = (
    "A sample is scored as a batch of one, which training_step must accept: squeeze(-1), for instance, in place of "
    "squeeze(), which takes the dimension of the samples too."
)


@contextmanager
def recording() -> Generator[None, None, None]:
    """Records operations for the backward pass until exit, also within `no_grad` and `inference_mode`."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def recordable(batch: Batch) -> Batch:
    """Returns a batch without tensors made in inference mode, which no backward pass may use."""

    def of_tensor(x: Tensor) -> Tensor:
        return x.clone() if x.is_inference() else x

    return map_tensors(of_tensor, batch, lambda part: with_tensors_within(part, of_tensor))


def leaf(theta: Float[Tensor, " p"]) -> Float[Tensor, " p"]:
    """Returns a copy of θ that gradients are taken in."""
    return theta.detach().clone().requires_grad_()


def gradient(value: Float[Tensor, ""], theta: Float[Tensor, "*p"], create_graph: bool = False) -> Float[Tensor, "*p"]:
    """Returns ∂value/∂θ of a recorded value, in the shape of θ; zero if the value does not depend on θ."""
    if not value.requires_grad:
        return torch.zeros_like(theta)
    with user_code("The backward pass of a loss", remedy=BATCH_OF_ONE):
        (slope,) = torch.autograd.grad(
            value, theta, create_graph=create_graph, allow_unused=True, materialize_grads=True
        )
    return slope


def gradient_and_value(function: Scalar, theta: Float[Tensor, " p"]) -> tuple[Float[Tensor, " p"], Float[Tensor, ""]]:
    """Returns ∇f(θ) and f(θ), as `torch.func.grad_and_value` does."""
    with recording():
        at = leaf(theta)
        value = function(at)
        return gradient(value, at), value.detach()


def hessian_products(function: Scalar, theta: Float[Tensor, " p"], V: Float[Tensor, "k p"]) -> Float[Tensor, "k p"]:
    """Returns ∇²f(θ) v for each row v of V, by double backward from one recorded gradient."""
    with recording():
        at = leaf(theta)
        slope = gradient(function(at), at, create_graph=True)
        if not slope.requires_grad:  # f is linear in θ
            return torch.zeros_like(V)
        return torch.stack([pulled(slope, at, v) for v in recordable_rows(V)])


def recordable_rows(V: Float[Tensor, "k p"]) -> Float[Tensor, "k p"]:
    """Returns the rows outside of inference mode."""
    return V.clone() if V.is_inference() else V


@contextmanager
def second_derivative() -> Generator[None, None, None]:
    """Names the operation where torch has no second derivative of a loss.

    Raises:
        InputError: The loss has none.
        RuntimeError: The code failed for another reason.
    """
    try:
        yield
    except RuntimeError as error:
        meaning = meaning_of(str(error))
        if isinstance(error, IflooError) or meaning is None or not meaning.endswith(NO_DERIVATIVE):
            raise
        raise InputError(
            f"The loss has no second derivative in torch, which a curvature needs: {meaning}.\n"
            "  Take a method of first derivatives: --attribution.method.class_path ifloo.attribution.GradientDot."
        ) from error


def pulled(slope: Tensor, at: Tensor, v: Tensor) -> Tensor:
    """Returns ∂⟨slope, v⟩/∂at of a recorded slope, and keeps its graph; raises the errors of `second_derivative`."""
    with second_derivative():
        (product,) = torch.autograd.grad(slope, at, v, retain_graph=True, allow_unused=True, materialize_grads=True)
    return product
