"""Remedies for a curvature that is not positive definite: its smallest eigenvalue, and the damping that would do."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ifloo.curvature import Damped, Definite, LinearOperator

STEPS = 40  # products of one vector that an estimate takes at most
BASIS_BYTES = 1 << 30  # memory allowed for the basis of an estimate
MARGIN = 1.25  # factor by which a damping goes beyond the eigenvalue that it makes up for
CONVERGED = 1e-3  # error of an estimate relative to its size at which it ends
_LEADING = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0, 10.0)  # a damping is rounded up to one of these times a power of ten


@dataclass(frozen=True)
class Lowest:
    """Estimate of the smallest eigenvalue of an operator.

    Attributes:
        value: Rayleigh quotient of the direction found: the smallest eigenvalue is this or lower.
        error: Norm of the residual of that direction: an eigenvalue lies within this distance of `value`.
        largest: Estimate of the largest eigenvalue, the scale of rounding errors.
    """

    value: float
    error: float
    largest: float


def lowest_eigenvalue(A: LinearOperator, start: Float[Tensor, " p"] | None = None, steps: int = STEPS) -> Lowest:
    """Estimates the smallest eigenvalue of A from products with A, by Lanczos' method with full orthogonalisation.

    Source: Lanczos 1950; the residual from the last row: Parlett 1998, The Symmetric Eigenvalue Problem, section 13.2.

    Args:
        A: Symmetric operator.
        start: First direction, such as one of negative curvature; None: a random one.
        steps: Largest number of products.
    """
    affordable = BASIS_BYTES // (A.size * torch.finfo(A.dtype).bits // 8)
    steps = min(steps, A.size, max(8, affordable))
    if start is None:
        start = torch.randn(A.size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    v = (start / start.norm()).to(A.device, A.dtype)
    basis = [v]
    diagonal: list[float] = []
    beside: list[float] = []
    found = Lowest(math.nan, math.nan, math.nan)
    for _ in range(steps):
        w = A.matmat(basis[-1][None])[0]
        diagonal.append(float(w @ basis[-1]))
        V = torch.stack(basis)
        for _ in range(2):  # once would leave rounding errors of the size of the smallest entries
            w = w - (V @ w) @ V
        beside.append(float(w.norm()))
        found = _lowest_of(diagonal, beside)
        tiny = beside[-1] <= torch.finfo(A.dtype).eps * max(map(abs, diagonal))
        if tiny or found.error <= CONVERGED * abs(found.value):
            break
        basis.append(w / beside[-1])
    return found


def _lowest_of(diagonal: list[float], beside: list[float]) -> Lowest:
    """Returns the smallest eigenvalue of the tridiagonal matrix, whose residual is in the last of `beside`."""
    T = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    off = torch.tensor(beside[:-1], dtype=torch.float64)
    T = T + torch.diag(off, 1) + torch.diag(off, -1)
    values, vectors = torch.linalg.eigh(T)
    return Lowest(float(values[0]), beside[-1] * abs(float(vectors[-1, 0])), float(values[-1]))


def sufficient_damping(A: LinearOperator, lowest: Lowest) -> float:
    """Returns a damping that makes A positive definite, in place of the damping that A has; rounded up."""
    rounding = torch.finfo(A.dtype).eps * abs(lowest.largest) * math.sqrt(A.size)
    need = max(lowest.error - lowest.value, 0.0) + rounding
    return _rounded_up(MARGIN * need + _damping_of(A))


def damping_remedy(A: LinearOperator, lowest: Lowest) -> str:
    """Returns the sentences of a message that tell which damping would do, with its flag, and what else helps."""
    damping, now = sufficient_damping(A, lowest), _damping_of(A)
    instead = f" in place of {now:g}" if now else ""
    if A.definite is Definite.UNKNOWN:
        other = "Or train to a minimum, or use curvature GaussNewton with damping."
    else:  # it is a Gauss-Newton matrix already
        other = f"Or use float64: it is declared {A.definite.value}, as it is where loss and penalty are convex."
    return f"Damping {damping:g}{instead} would do (--attribution.damping {damping:g}). {other}"


def _damping_of(A: LinearOperator) -> float:
    return A.damping if isinstance(A, Damped) else 0.0


def _rounded_up(value: float) -> float:
    if not 0 < value < math.inf:
        return value
    power = 10.0 ** math.floor(math.log10(value))
    return next(lead for lead in _LEADING if lead * power >= value * (1 - 1e-12)) * power
