"""Newton's method within a trust region: the last steps of a fit whose J is not convex on the way to its minimum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ifloo.curvature import Hessian
from ifloo.errors import WorkError
from ifloo.minimize.newton_cg import FINEST_RTOL, Evaluation, FitEnd, NewtonSystem
from ifloo.objective import Objective

PRODUCTS = 1000  # with the Hessian in one step at most
TAKEN = 1e-4  # share of the predicted decrease that a step must bring
POOR, GOOD = 0.25, 0.75  # shares below and above which the region shrinks and grows
DECREASE_ULPS = 100  # units in the last place of J: a smaller predicted decrease cannot be seen in J
REFUSED = 30  # steps in a row: the region has shrunk by 4^30 then

Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Step:
    """An approximate minimiser of the model m(s) = gᵀs + ½ sᵀHs within the region ‖s‖_M <= Δ, M = P⁻¹.

    Attributes:
        value: s, `[p]`.
        decrease: −m(s) > 0, nats.
        length: ‖s‖_M.
        products: with H.
        negative: whether a direction of negative curvature ended it.
        inside: whether it ended before the boundary of the region, by its residual.
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
) -> FitEnd:
    """Minimises J(θ; w) from `theta` to ‖∇J‖ <= tolerance, through regions of negative curvature too.

    A step is taken where J falls by its share of what the quadratic model predicts (Nocedal & Wright 2006, algorithm
    4.1), or, where that is below the rounding of J, where ‖∇J‖ falls. What is found is where the descent from `theta`
    ends: where J has many minima, one of them.

    Args:
        objective: J(θ; w), with the weights of the refit.
        theta: `[p]`, where to start.
        tolerance: ‖∇J‖ to reach, nats per unit of the parameters.
        max_steps: Newton steps at most, those refused included.
        inner: how each step is found; None: without a preconditioner, in the precision of θ.
        start: J and ∇J at `theta`; None: they are computed here.

    Raises:
        WorkError: the tolerance was not reached; the message says how far it came and why.
    """
    inner = inner or NewtonSystem()
    radius, products, refused, negative = float("inf"), 0, 0, False
    value, gradient = start or objective.value_and_gradient(theta)
    hessian: Hessian | None = None  # at theta; built when a step needs it
    for step in range(max_steps + 1):
        norm = float(gradient.norm())
        if norm <= tolerance:
            return FitEnd(theta, float(value), norm, step, products)
        if step == max_steps or refused == REFUSED or not norm < float("inf"):
            break
        rtol = max(0.3 * tolerance / norm, FINEST_RTOL, min(0.1, norm**0.5))
        hessian = hessian or inner.hessian(objective, theta)
        found = steihaug(_one(hessian.matmat), _preconditioned(inner), gradient.to(hessian.dtype), radius, rtol)
        products, negative = products + found.products, found.negative
        trial = theta + found.value.to(theta)
        trial_value, trial_gradient = objective.value_and_gradient(trial)
        share = _share(found, value, trial_value, gradient, trial_gradient)
        radius = _radius(radius, found, share)
        refused = 0 if share > TAKEN else refused + 1
        if share > TAKEN:
            theta, value, gradient, hessian = trial, trial_value, trial_gradient, None
    raise WorkError(_not_reached(norm, tolerance, step, negative, theta.dtype))


def _radius(radius: float, found: Step, share: float) -> float:
    if not share >= POOR:  # NaN counts as poor
        return 0.25 * found.length
    return 2 * found.length if share > GOOD and not found.inside else radius


def _one(product: Product) -> Product:
    return lambda v: product(v[None])[0]


def _preconditioned(inner: NewtonSystem) -> Product:
    prepared = inner.preconditioner
    return _one(prepared.apply) if prepared else (lambda r: r)


def _share(found: Step, value: Tensor, trial_value: Tensor, gradient: Tensor, trial_gradient: Tensor) -> float:
    """Actual over predicted decrease of J; below the rounding of J 1 where ‖∇J‖ falls, else 0."""
    if found.decrease > DECREASE_ULPS * torch.finfo(value.dtype).eps * abs(float(value)):
        return float(value - trial_value) / found.decrease
    return float(trial_gradient.norm() <= (1 - TAKEN) * gradient.norm())


def steihaug(H: Product, P: Product, gradient: Float[Tensor, " p"], radius: float, rtol: float) -> Step:
    """CG on H s = −g that stops at the boundary of the region, or there along a direction of negative curvature.

    Source: Steihaug 1983, SIAM J. Numer. Anal. 20(3); with a preconditioner, and the recurrences of its norms, Conn,
    Gould & Toint 2000, Trust-Region Methods, algorithm 7.5.1.

    Args:
        H: v -> Hv.
        P: r -> Pr, symmetric positive definite, near H⁻¹ in size and shape where H is positive definite.
        gradient: g, `[p]`.
        radius: Δ; infinite: as far as the residual asks for, and after negative curvature as far as g alone leads.
        rtol: ‖Hs + g‖ / ‖g‖ at which it stops.
    """
    s, r = torch.zeros_like(gradient), gradient
    z = P(r)
    d, rz = -z, float(r @ z)
    ss, sd, dd = 0.0, 0.0, rz  # of s and d, products of M
    wanted = rtol * float(gradient.norm())
    alone = rz**0.5  # ‖Pg‖_M, the length of the step by the gradient alone
    for products in range(1, PRODUCTS + 1):
        Hd = H(d)
        curvature = float(d @ Hd)
        alpha = rz / curvature if curvature > 0 else float("inf")
        further = ss + 2 * alpha * sd + alpha * alpha * dd if curvature > 0 else float("inf")
        if not further < radius**2:
            alpha = _to_boundary(ss, sd, dd, radius if radius < float("inf") else max(alone, 2 * ss**0.5))
            length = (ss + 2 * alpha * sd + alpha * alpha * dd) ** 0.5
            return _step(gradient, s + alpha * d, r + alpha * Hd, length, products, not curvature > 0, False)
        s, r, ss = s + alpha * d, r + alpha * Hd, further
        if float(r.norm()) <= wanted:
            break
        z = P(r)
        rz, before = float(r @ z), rz
        beta = rz / before
        d, sd, dd = beta * d - z, beta * (sd + alpha * dd), rz + beta * beta * dd
    return _step(gradient, s, r, ss**0.5, products, False, True)


def _to_boundary(ss: float, sd: float, dd: float, radius: float) -> float:
    """The α > 0 with ‖s + αd‖_M = Δ."""
    root: float = (sd * sd + dd * (radius * radius - ss)) ** 0.5
    return (root - sd) / dd


def _step(gradient: Tensor, s: Tensor, r: Tensor, length: float, products: int, negative: bool, inside: bool) -> Step:
    model = float(gradient @ s + 0.5 * (s @ (r - gradient)))  # r = g + Hs
    return Step(s, -model, length, products, negative, inside)


def _not_reached(norm: float, tolerance: float, steps: int, negative: bool, dtype: torch.dtype) -> str:
    if negative:
        cause = (
            "the last one met negative curvature, so this is not yet near a minimum; train longer before the finish, "
            "raise finish.max_steps or the penalty"
        )
    elif dtype is torch.float32:
        cause = "32-bit rounding of the gradient sets this limit; raise the tolerance or train in float64"
    else:
        cause = "raise finish.max_steps, or the penalty if the Hessian is close to singular here"
    return (
        f"Newton steps in a trust region ended at |grad J| = {norm:.2e} after {steps} steps, {tolerance:.1e} was asked "
        f"for: {cause}."
    )
