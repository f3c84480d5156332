"""Newton-CG on J(θ; w), for the last steps of a convex fit to gradient norms below those of quasi-Newton methods."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from ifloo.curvature import Hessian
from ifloo.errors import WorkError
from ifloo.objective import Objective, TrainingData
from ifloo.solvers import CG, PreparedPreconditioner, Solution, SolveError, Status
from ifloo.solvers.cg import PreparedCG

HALVINGS = 12  # maximum number of step lengths 1, 1/2, 1/4, … that are tried for one Newton step
# Smallest relative residual of the inner solve: one Newton step gains four digits at most before the quadratic model is
# updated.
FINEST_RTOL = 1e-4
ROUNDED = 1e4  # roundings of J, or of 1, that ‖∇J‖ may be where rounding is the limit

Evaluation: TypeAlias = tuple[Float[Tensor, ""], Float[Tensor, " p"]]
"""J(θ; w) and ∇J(θ; w) at one θ."""


@dataclass(frozen=True)
class FitEnd:
    """Result of a minimisation.

    Attributes:
        theta: Parameters θ at the end, `[p]`.
        value: Objective J(θ; w), nats.
        grad_norm: Gradient norm ‖∇J(θ; w)‖.
        steps: Number of Newton steps.
        products: Number of Hessian-vector products.
    """

    theta: Float[Tensor, " p"]
    value: float
    grad_norm: float
    steps: int
    products: int


@dataclass(frozen=True)
class NewtonSystem:
    """Settings of the inner solve of each Newton equation, which may be inexact: convergence is judged by ‖∇J‖.

    Attributes:
        preconditioner: Preconditioner of the inner CG, in the precision of `data`.
        keep_graph: Whether to keep the linearisation for the whole solve.
        data: The same samples in a lower precision, for cheaper products; None for the data of the objective.
    """

    preconditioner: PreparedPreconditioner | None = None
    keep_graph: bool = True
    data: TrainingData | None = None

    def hessian(self, objective: Objective, theta: Float[Tensor, " p"]) -> Hessian:
        """Returns ∇²J in the precision of the inner solve."""
        if self.data is None:
            return Hessian(objective, theta, self.keep_graph)
        return Hessian(replace(objective, data=self.data), theta.to(self.data.dtype), self.keep_graph)

    def solve(self, objective: Objective, theta: Float[Tensor, " p"], B: Float[Tensor, "k p"], rtol: float) -> Solution:
        """Solves H x = b for each row of B, in the precision of the inner solve."""
        operator = self.hessian(objective, theta)
        return PreparedCG(CG(rtol), operator, self.preconditioner).solve(B.to(operator.dtype))


def newton_cg(
    objective: Objective,
    theta: Float[Tensor, " p"],
    tolerance: float,
    max_steps: int = 20,
    inner: NewtonSystem | None = None,
    start: Evaluation | None = None,
) -> FitEnd:
    """Minimises J(θ; w) from `theta` to ‖∇J‖ <= tolerance (Nocedal & Wright 2006, section 7.1, on ‖∇J‖).

    The gradient, and thus the tolerance, has the precision of θ; only the direction may be computed in a lower one.

    Args:
        objective: Objective J(θ; w) with the weights of the refit.
        theta: Starting point, `[p]`.
        tolerance: Gradient norm ‖∇J‖ to reach, nats per unit of the parameters.
        max_steps: Maximum number of Newton steps.
        inner: Settings of the inner solve; None for plain CG in the precision of θ.
        start: J and ∇J at `theta`; None if they have yet to be computed.

    Raises:
        WorkError: The tolerance was not reached; the message states the gradient norm reached and the likely cause.
    """
    value, gradient = start or objective.value_and_gradient(theta)
    products, first, reduced = 0, float(gradient.norm()), True
    for step in range(max_steps + 1):
        norm = float(gradient.norm())
        if norm <= tolerance:
            return FitEnd(theta, float(value), norm, step, products)
        if step == max_steps or not norm < float("inf"):
            break
        direction, step_products = _direction(objective, theta, gradient, tolerance, inner or NewtonSystem())
        products += step_products
        theta, value, gradient, reduced = _search(objective, theta, value, gradient, direction)
        if not reduced:
            break
    end = float(gradient.norm())
    cause = out_of_steps(step, first, end) if reduced else nothing_smaller(end, value)
    raise WorkError(not_reached("Newton-CG", end, tolerance, step, cause))


def _direction(
    objective: Objective, theta: Tensor, gradient: Tensor, tolerance: float, inner: NewtonSystem
) -> tuple[Float[Tensor, " p"], int]:
    """Returns −H⁻¹∇J, to as many digits as this step can use, and the number of products.

    Raises:
        SolveError: The Hessian is not positive definite here, or not finite.
    """
    norm = gradient.norm()
    rtol = min(max(0.3 * tolerance / float(norm), FINEST_RTOL), 0.1)
    solution = inner.solve(objective, theta, (gradient / norm)[None], rtol)
    if solution.status[0] in (Status.INDEFINITE, Status.NOT_FINITE):
        raise SolveError(f"A Newton step has no direction: {solution.advice[0].splitlines()[0]}")
    # A residual above rtol (float32 may not reach it) only makes the direction worse, which the search compensates.
    return -norm * solution.value[0].to(theta.dtype), int(solution.steps[0]) + 1


def _search(
    objective: Objective, theta: Tensor, value: Tensor, gradient: Tensor, direction: Tensor
) -> tuple[Tensor, Tensor, Tensor, bool]:
    """Takes the longest of 1, 1/2, 1/4, … steps that reduces ‖∇J‖, and tells whether there is one.

    The search uses ‖∇J‖ because J itself changes by less than its rounding near the minimum.
    """
    norm = gradient.norm()
    for halving in range(HALVINGS):
        length = 0.5**halving
        trial = theta + length * direction
        trial_value, trial_gradient = objective.value_and_gradient(trial)
        if trial_gradient.norm() <= (1 - 1e-4 * length) * norm:
            return trial, trial_value, trial_gradient, True
    return theta, value, gradient, False


def not_reached(steps_of: str, norm: float, tolerance: float, steps: int, cause: str) -> str:
    """Returns the message for a minimisation that ended above its tolerance."""
    end = f"|grad J| = {norm:.2e} after {steps} steps, above the tolerance of {tolerance:.1e}"
    return f"{steps_of} ended at {end}: {cause}."


def out_of_steps(steps: int, first: float, last: float) -> str:
    """Returns the cause of an end after the last step that is allowed; `first` and `last` are ‖∇J‖ at both ends."""
    if not last < float("inf"):
        return f"J or its gradient is not finite there (|grad J| was {first:.2e} at the start)"
    return f"all {steps} steps of finish.max_steps are taken (|grad J| was {first:.2e} at the start)"


def nothing_smaller(norm: float, value: Tensor) -> str:
    """Returns the cause of an end where no step makes ‖∇J‖ or J smaller."""
    if norm > ROUNDED * torch.finfo(value.dtype).eps * max(1.0, abs(float(value))):
        return "no step, however short, reduces J: it has a kink here, or its gradient is not its derivative"
    if value.dtype is torch.float32:
        return "32-bit rounding of the gradient sets this limit; raise the tolerance or train in float64"
    return "rounding of the gradient sets this limit; raise the tolerance"
