"""Newton-CG on J(θ; w): the last steps of a convex fit, to a gradient norm no quasi-Newton line search reaches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ifloo.curvature import Hessian
from ifloo.errors import WorkError
from ifloo.objective import Objective
from ifloo.solvers import CG, PreparedPreconditioner, Solution, SolveError, Status
from ifloo.solvers.cg import PreparedCG

HALVINGS = 12  # of a Newton step that does not lower ‖∇J‖
GAIN = (
    1e-4  # residual of the inner solve: one Newton step wins four digits at most, then the quadratic model is renewed
)


@dataclass(frozen=True)
class Minimum:
    """Where a minimisation ended.

    Attributes:
        theta: `[p]`.
        value: J(θ; w), nats.
        grad_norm: ‖∇J(θ; w)‖.
        steps: Newton steps.
        products: Hessian-vector products.
    """

    theta: Float[Tensor, " p"]
    value: float
    grad_norm: float
    steps: int
    products: int


def newton_cg(
    objective: Objective,
    theta: Float[Tensor, " p"],
    tolerance: float,
    max_steps: int = 20,
    preconditioner: PreparedPreconditioner | None = None,
    keep_graph: bool = True,
) -> Minimum:
    """Minimises J(θ; w) from `theta` to ‖∇J‖ <= tolerance (Nocedal & Wright 2006, section 7.1, on ‖∇J‖).

    Raises:
        WorkError: the tolerance was not reached; the message says how far it came and why.
    """
    value, gradient = objective.value_and_gradient(theta)
    products = 0
    for step in range(max_steps + 1):
        norm = float(gradient.norm())
        if norm <= tolerance:
            return Minimum(theta, float(value), norm, step, products)
        if step == max_steps or not norm < float("inf"):
            break
        solution = _direction(objective, theta, gradient, tolerance, preconditioner, keep_graph)
        products += int(solution.steps[0]) + 1
        theta, value, gradient, won = _search(objective, theta, value, gradient, -solution.value[0])
        if not won:
            break
    raise WorkError(_not_reached(float(gradient.norm()), tolerance, step, theta.dtype))


def _direction(
    objective: Objective,
    theta: Tensor,
    gradient: Tensor,
    tolerance: float,
    preconditioner: PreparedPreconditioner | None,
    keep_graph: bool,
) -> Solution:
    wanted = min(max(0.3 * tolerance / float(gradient.norm()), GAIN), 0.1)
    solver = PreparedCG(CG(rtol=wanted), Hessian(objective, theta, keep_graph), preconditioner)
    solution = solver.solve(gradient.unsqueeze(0))
    if solution.status[0] is not Status.CONVERGED:
        raise SolveError(f"A Newton step has no direction: {solution.advice[0]}")
    return solution


def _search(
    objective: Objective, theta: Tensor, value: Tensor, gradient: Tensor, direction: Tensor
) -> tuple[Tensor, Tensor, Tensor, bool]:
    """The longest of 1, 1/2, 1/4, … steps that lowers ‖∇J‖; J itself changes below rounding near the minimum."""
    norm = gradient.norm()
    for halving in range(HALVINGS):
        length = 0.5**halving
        trial = theta + length * direction
        trial_value, trial_gradient = objective.value_and_gradient(trial)
        if trial_gradient.norm() <= (1 - 1e-4 * length) * norm:
            return trial, trial_value, trial_gradient, True
    return theta, value, gradient, False


def _not_reached(norm: float, tolerance: float, steps: int, dtype: torch.dtype) -> str:
    cause = (
        "32-bit rounding of the gradient sets this limit; raise the tolerance or train in float64"
        if dtype is torch.float32
        else "is J convex, and is its Hessian positive definite here (l2_reg > 0)?"
    )
    return f"Newton-CG ended at |grad J| = {norm:.2e} after {steps} steps, {tolerance:.1e} was asked for: {cause}."
