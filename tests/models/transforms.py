"""Laws of the transforms behind scores and refits, each checked against plain autograd or central differences.

A case is a float64 module whose output is computed row by row, and rows for it; a law is law(case). A new module is
fully tested by one more line in the table of a test.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.functional import jacobian, jvp, vhp
from torch.func import functional_call, grad, vmap

from ifloo.objective.forms import map_tensors
from ifloo.params import ParamSpace

EXACT = {"rtol": 1e-11, "atol": 1e-12}  # only the order of summation differs
STEP = 1e-6  # step of central differences


@dataclass(frozen=True)
class Case:
    """f(θ) = module(*rows), `[b, ...]`.

    Attributes:
        module: Module in float64.
        rows: Arguments of the module, every tensor `[b, ...]`.
        theta: Parameters, `[p]`, away from a module's initial values: no gain is one and no bias zero.
        directions: Directions of derivatives, `[3, p]`.
    """

    module: nn.Module
    rows: tuple[Any, ...]
    theta: Tensor
    directions: Tensor

    @classmethod
    def of(cls, module: nn.Module, *rows: Any) -> "Case":
        space, draw = ParamSpace.of(module), torch.Generator().manual_seed(1)
        moved, *directions = torch.randn(4, space.size, generator=draw, dtype=torch.float64)
        return cls(module, rows, space.values_of(module) + 0.2 * moved, torch.stack(directions))

    def output(self, theta: Tensor, rows: Any = None) -> Tensor:
        values = ParamSpace.of(self.module).unflatten(theta)
        return functional_call(self.module, values, self.rows if rows is None else rows)

    def each(self, theta: Tensor, rows: Any = None) -> Tensor:
        """Computes a nonlinear function of each row's output, `[b]`."""
        output = self.output(theta, rows)
        return output.reshape(len(output), -1).sin().sum(1)

    def total(self, theta: Tensor) -> Tensor:
        return self.each(theta).sum()


def assert_near(difference: Tensor, truth: Tensor) -> None:
    """Checks equality to 1e-6; at this step truncation and rounding are each a hundred times smaller."""
    assert float((difference - truth).detach().norm()) <= 1e-6 * float(truth.detach().norm())


def _alone(row: Any) -> Any:
    return map_tensors(lambda x: x.unsqueeze(0), row)


def a_row_alone_is_that_row_of_the_batch(case: Case) -> None:
    """Checks vmap over samples: a module that mixes rows, or branches on values, fails."""
    alone = vmap(lambda row: case.output(case.theta, _alone(row)).squeeze(0))(case.rows)
    torch.testing.assert_close(alone, case.output(case.theta), **EXACT)


def stacked_parameters_are_modules_side_by_side(case: Case) -> None:
    """Checks vmap over θ `[k, p]`, by which replicas are trained: in-place operations, or ones without a rule, fail."""
    stacked = case.theta + 0.1 * case.directions
    together = vmap(case.output)(stacked)
    torch.testing.assert_close(together, torch.stack([case.output(theta) for theta in stacked]), **EXACT)


def forward_mode_is_the_jacobian(case: Case) -> None:
    """Checks jvp, which all scores use: fused attention has none, a mean over no token gives nan."""
    _, forward = torch.func.jvp(case.output, (case.theta,), (case.directions[0],))
    torch.testing.assert_close(forward, jvp(case.output, case.theta, case.directions[0])[1], **EXACT)
    up, down = (case.output(case.theta + sign * STEP * case.directions[0]) for sign in (1, -1))
    assert_near((up - down) / (2 * STEP), forward)


def gradients_of_samples_are_those_of_one_pass_each(case: Case) -> None:
    """Checks vmap(grad): a loss that depends on other rows, or is nan at an ignored label, fails."""
    gradients = vmap(grad(lambda t, row: case.each(t, _alone(row)).squeeze(0)), (None, 0))(case.theta, case.rows)
    torch.testing.assert_close(gradients, jacobian(case.each, case.theta), **EXACT)


def hessian_products_are_differences_of_gradients(case: Case) -> None:
    """Checks vjp(grad) in many directions: grad(jvp) is silently wrong through layer_norm, fused attention has none."""
    _, product = torch.func.vjp(grad(case.total), case.theta)
    (products,) = vmap(product)(case.directions)
    for direction, found in zip(case.directions, products, strict=True):
        torch.testing.assert_close(found, vhp(case.total, case.theta, direction)[1], **EXACT)
        up, down = (jacobian(case.total, case.theta + sign * STEP * direction) for sign in (1, -1))
        assert_near((up - down) / (2 * STEP), found)


LAWS = [
    a_row_alone_is_that_row_of_the_batch,
    stacked_parameters_are_modules_side_by_side,
    forward_mode_is_the_jacobian,
    gradients_of_samples_are_those_of_one_pass_each,
    hessian_products_are_differences_of_gradients,
]
