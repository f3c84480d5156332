"""Newton's method with a trust region, for the last steps of a fit whose J is not convex on the way to its minimum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ifloo.curvature import Hessian
from ifloo.errors import WorkError
from ifloo.minimize.newton_cg import (
    FINEST_RTOL,
    Evaluation,
    FitEnd,
    NewtonSystem,
    not_reached,
    nothing_smaller,
    out_of_steps,
)
from ifloo.objective import Objective

MAX_PRODUCTS = 1000  # maximum number of products with the Hessian in one step
SUFFICIENT = 1e-4  # ratio of actual to predicted decrease above which a step is taken
POOR, GOOD = 0.25, 0.75  # ratios of actual to predicted decrease below which the region shrinks, above which it grows
DECREASE_ULPS = 100  # in units in the last place of J: a smaller predicted decrease is not measurable in J
MAX_REJECTED = 30  # maximum number of rejected steps in a row, after which the region has shrunk by 4^30

Product = Callable[[Tensor], Tensor]  # [p] -> [p]


@dataclass(frozen=True)
class Step:
    """An approximate minimiser of the model m(s) = gᵀs + ½ sᵀHs in the region ‖s‖_M <= Δ, where M = P⁻¹.

    Attributes:
        value: Step s, `[p]`.
        decrease: Predicted decrease −m(s) > 0, nats.
        length: Length ‖s‖_M.
        products: Number of products with H.
        negative: Whether the step ended along a direction of negative curvature.
        inside: Whether the step ended inside the region because its residual was small enough.
    """

    value: Float[Tensor, " p"]
    decrease: float
    length: float
    products: int
    negative: bool
    inside: bool


def trust_region(
    objective: Objective,
    theta: Float[Tensor, " p"],
    tolerance: float,
    max_steps: int = 100,
    inner: NewtonSystem | None = None,
    start: Evaluation | None = None,
    final: float | None = None,
) -> FitEnd:
    """Minimises J(θ; w) from `theta` to ‖∇J‖ <= tolerance, through regions of negative curvature too.

    A step is taken if J decreases by a sufficient share of what the quadratic model predicts (Nocedal & Wright 2006,
    algorithm 4.1) or, if the predicted decrease is below the rounding of J, if ‖∇J‖ decreases.

    Args:
        objective: Objective J(θ; w) with the weights of the refit.
        theta: Starting point, `[p]`.
        tolerance: Gradient norm ‖∇J‖ to reach, nats per unit of the parameters.
        max_steps: Maximum number of Newton steps, including rejected ones.
        inner: Settings of the inner solve; None for no preconditioner and the precision of θ.
        start: J and ∇J at `theta`; None if they have yet to be computed.
        final: Tolerance that an error names, if `tolerance` lies on the way to it; None for `tolerance`.

    Raises:
        WorkError: The tolerance was not reached; the message states the gradient norm reached and the likely cause.
    """
    inner, (value, gradient) = inner or NewtonSystem(), start or objective.value_and_gradient(theta)
    radius, products, rejected, negative, first = float("inf"), 0, 0, 0, float(gradient.norm())
    hessian: Hessian | None = None  # at theta; built when a step needs it
    for step in range(max_steps + 1):
        norm = float(gradient.norm())
        if norm <= tolerance:
            return FitEnd(theta, float(value), norm, step, products)
        if step == max_steps or rejected == MAX_REJECTED or not norm < float("inf"):
            break
        rtol = max(0.3 * tolerance / norm, FINEST_RTOL, min(0.1, norm**0.5))
        hessian = hessian or inner.hessian(objective, theta)
        H, P = _of_one_vector(hessian.matmat), _preconditioner(inner)
        proposed = steihaug(H, P, gradient.to(hessian.dtype), radius, rtol)
        products, negative = products + proposed.products, negative + proposed.negative
        trial = theta + proposed.value.to(theta)
        trial_value, trial_gradient = objective.value_and_gradient(trial)
        ratio = _decrease_ratio(proposed, value, trial_value, gradient, trial_gradient)
        radius = _next_radius(radius, proposed, ratio)
        rejected += 1
        if ratio > SUFFICIENT:
            theta, value, gradient, hessian, rejected = trial, trial_value, trial_gradient, None, 0
    cause = nothing_smaller(norm, value) if rejected == MAX_REJECTED else _ran_out(step, first, norm, negative)
    raise WorkError(not_reached("Newton steps in a trust region", norm, final or tolerance, step, cause))


def _ran_out(steps: int, first: float, last: float, negative: int) -> str:
    met = f"; {negative} of them met negative curvature" if negative else ""
    return out_of_steps(steps, first, last) + met


def _next_radius(radius: float, step: Step, ratio: float) -> float:
    if not ratio >= POOR:  # including NaN
        return 0.25 * step.length
    return 2 * step.length if ratio > GOOD and not step.inside else radius


def _of_one_vector(product: Product) -> Product:
    return lambda v: product(v[None])[0]


def _preconditioner(inner: NewtonSystem) -> Product:
    prepared = inner.preconditioner
    return _of_one_vector(prepared.apply) if prepared else (lambda r: r)


def _decrease_ratio(step: Step, value: Tensor, trial_value: Tensor, gradient: Tensor, trial_gradient: Tensor) -> float:
    """Returns the ratio of actual to predicted decrease of J.

    If the predicted decrease is below the rounding of J, the ratio is 1 where ‖∇J‖ decreases and 0 elsewhere.
    """
    if step.decrease > DECREASE_ULPS * torch.finfo(value.dtype).eps * abs(float(value)):
        return float(value - trial_value) / step.decrease
    return float(trial_gradient.norm() <= (1 - SUFFICIENT) * gradient.norm())


def steihaug(H: Product, P: Product, gradient: Float[Tensor, " p"], radius: float, rtol: float) -> Step:
    """Runs CG on H s = −g up to the boundary of the region, and along a direction of negative curvature to it.

    Source: Steihaug 1983, SIAM J. Numer. Anal. 20(3); preconditioner and recurrences of norms in M = P⁻¹ as in Conn,
    Gould & Toint 2000, Trust-Region Methods, algorithm 7.5.1.

    Args:
        H: Function v -> Hv.
        P: Function r -> Pr, symmetric positive definite, close to H⁻¹ where H is positive definite.
        gradient: Gradient g, `[p]`.
        radius: Radius Δ. If it is infinite, CG ends by its residual; at negative curvature the length of the step is
            then that of Pg or twice that of s, whichever is larger.
        rtol: Relative residual ‖Hs + g‖ / ‖g‖ at which CG ends.
    """
    s, r = torch.zeros_like(gradient), gradient
    z = P(r)
    d, rz = -z, float(r @ z)
    ss, sd, dd = 0.0, 0.0, rz  # sᵀMs, sᵀMd and dᵀMd
    residual_goal = rtol * float(gradient.norm())
    first_length = rz**0.5  # ‖Pg‖_M
    for products in range(1, MAX_PRODUCTS + 1):
        Hd = H(d)
        curvature = float(d @ Hd)
        alpha = rz / curvature if curvature > 0 else float("inf")
        next_ss = ss + 2 * alpha * sd + alpha * alpha * dd if curvature > 0 else float("inf")
        if not next_ss < radius**2:
            alpha = _to_boundary(ss, sd, dd, radius if radius < float("inf") else max(first_length, 2 * ss**0.5))
            length = (ss + 2 * alpha * sd + alpha * alpha * dd) ** 0.5
            return _step(gradient, s + alpha * d, r + alpha * Hd, length, products, not curvature > 0, False)
        s, r, ss = s + alpha * d, r + alpha * Hd, next_ss
        if float(r.norm()) <= residual_goal:
            break
        z = P(r)
        rz, previous_rz = float(r @ z), rz
        beta = rz / previous_rz
        d, sd, dd = beta * d - z, beta * (sd + alpha * dd), rz + beta * beta * dd
    return _step(gradient, s, r, ss**0.5, products, False, True)


def _to_boundary(ss: float, sd: float, dd: float, radius: float) -> float:
    """Returns the α > 0 with ‖s + αd‖_M = Δ."""
    root: float = (sd * sd + dd * (radius * radius - ss)) ** 0.5
    return (root - sd) / dd


def _step(gradient: Tensor, s: Tensor, r: Tensor, length: float, products: int, negative: bool, inside: bool) -> Step:
    model = float(gradient @ s + 0.5 * (s @ (r - gradient)))  # r = g + Hs
    return Step(s, -model, length, products, negative, inside)
