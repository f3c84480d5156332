"""Conjugate gradients on many right-hand sides (Hestenes & Stiefel 1952; preconditioned: Saad 2003, alg. 9.1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ifloo.curvature import Definite, LinearOperator
from ifloo.errors import InputError
from ifloo.progress import OnProgress, no_progress
from ifloo.solvers.base import (
    NOT_FINITE_ADVICE,
    Preconditioner,
    Prepared,
    PreparedPreconditioner,
    Solution,
    Solver,
    Status,
    relative_residual,
)
from ifloo.solvers.tolerances import CG_RTOL, default_rtol


@dataclass(frozen=True)
class CG(Solver):
    """Conjugate gradients until each right-hand side's own residual is below `rtol`.

    The residual is recomputed from the operator at the end; where the recurrence was too optimistic the solve restarts
    from what it has (twice at most) before it gives up.

    Attributes:
        rtol: relative residual asked for; a miss is an error. None: 1e-10 in float64, 1e-6 in float32.
        max_steps: products with the operator at most, restarts included.
        preconditioner: approximate inverse; None for plain CG.

    Examples:
        >>> import torch
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> from ifloo.curvature import Damped, Hessian, dense
        >>> from ifloo.models import LogisticRegression
        >>> from ifloo.objective import Objective
        >>> from ifloo.solvers import CG
        >>> model = LogisticRegression(num_features=3, num_classes=2, l2_reg=0.1)
        >>> draw = torch.Generator().manual_seed(0)
        >>> data = TensorDataset(torch.randn(20, 3, generator=draw).double(), torch.arange(20) % 2)
        >>> objective, v = Objective.of(model, DataLoader(data)), torch.linspace(-1, 1, 6).double()
        >>> theta = objective.losses.theta()
        >>> A = Damped(Hessian(objective, theta), 0.1)
        >>> solution = CG().prepare(A).solve(v[None]).require()
        >>> torch.allclose(solution.value @ dense(A), v[None])
        True
    """

    rtol: float | None = None
    max_steps: int = 2000
    preconditioner: Preconditioner | None = None

    def __post_init__(self) -> None:
        """Checks the settings.

        Raises:
            InputError: rtol outside (0, 1) or max_steps below 1.
        """
        if self.rtol is not None and not 0 < self.rtol < 1:
            raise InputError(f"CG needs a tolerance 0 < rtol < 1, got {self.rtol}.")
        if self.max_steps < 1:
            raise InputError(f"CG needs max_steps >= 1, got {self.max_steps}.")

    def prepare(self, A: LinearOperator, tick: OnProgress = no_progress) -> PreparedCG:
        return PreparedCG(self, A, self.preconditioner.prepare(A) if self.preconditioner else None)


class PreparedCG(Prepared):
    """CG on one operator."""

    def __init__(self, settings: CG, A: LinearOperator, preconditioner: PreparedPreconditioner | None) -> None:
        self.settings, self.A, self.preconditioner = settings, A, preconditioner
        self.rtol = settings.rtol or default_rtol(CG_RTOL, A.dtype)

    def solve(self, B: Float[Tensor, "k p"]) -> Solution:
        run = _Run(torch.zeros_like(B), torch.zeros(len(B), dtype=torch.int64), B.norm(dim=1), [""] * len(B))
        run.status = [Status.NOT_CONVERGED if torch.isfinite(x) else Status.NOT_FINITE for x in run.norms]
        residual = torch.where(run.norms > 0, run.norms / run.norms, run.norms)  # 1, 0 for b = 0, NaN stays NaN
        for _ in range(3):
            unfinished = [i for i, s in enumerate(run.status) if s is Status.NOT_CONVERGED and residual[i] > self.rtol]
            if not unfinished or int(run.steps.max()) >= self.settings.max_steps:
                break
            self._descend(run, B, unfinished)
            residual = relative_residual(self.A, run.X, B)
        return self._certified(run, residual)

    def _descend(self, run: _Run, B: Float[Tensor, "k p"], rows: list[int]) -> None:
        """One CG run on the given rows from where they stand; rows that finish leave the block."""
        live = torch.tensor(rows, device=B.device)
        X = run.X[live]
        R = B[live] - self.A.matmat(X) if run.started else B[live]
        run.started = True
        Z = self._precondition(R)
        P, rho = Z, (R * Z).sum(1)
        while len(live):
            AP = self.A.matmat(P)
            run.steps[live.cpu()] += 1
            curvature = (P * AP).sum(1)
            bad = ~(curvature > 0)  # NaN counts as bad
            run.refuse(live[bad], curvature[bad], P[bad], self.A.definite)
            alpha = torch.where(bad, 0.0, rho / curvature)
            X = X + alpha[:, None] * P
            R = R - alpha[:, None] * AP
            small = R.norm(dim=1) <= self.rtol * run.norms[live]
            spent = (run.steps[live.cpu()] >= self.settings.max_steps).to(bad.device)
            run.X[live] = X
            if self.progress:
                self.progress(int(run.steps.max()), float((R.norm(dim=1) / run.norms[live]).max()))
            keep = ~(bad | small | spent)
            live, X, R, P, rho = live[keep], X[keep], R[keep], P[keep], rho[keep]
            if len(live):
                Z = self._precondition(R)
                rho, before = (R * Z).sum(1), rho
                P = Z + (rho / before)[:, None] * P

    def _precondition(self, R: Float[Tensor, "k p"]) -> Float[Tensor, "k p"]:
        return self.preconditioner.apply(R) if self.preconditioner else R

    def _certified(self, run: _Run, residual: Float[Tensor, " k"]) -> Solution:
        rtol = self.rtol
        for i, status in enumerate(run.status):
            if status is Status.NOT_FINITE:
                run.advice[i] = run.advice[i] or NOT_FINITE_ADVICE
            elif status is Status.NOT_CONVERGED and residual[i] <= rtol:
                run.status[i] = Status.CONVERGED
            elif status is Status.NOT_CONVERGED:
                run.advice[i] = _missed(
                    float(residual[i]), rtol, int(run.steps[i]), self.settings.max_steps, run.X.dtype
                )
        return Solution(run.X, residual, run.steps, tuple(run.status), tuple(run.advice))


@dataclass
class _Run:
    X: Float[Tensor, "k p"]
    steps: Int[Tensor, " k"]
    norms: Float[Tensor, " k"]
    advice: list[str]
    started: bool = False

    def __post_init__(self) -> None:
        self.status: list[Status] = []

    def refuse(self, rows: Tensor, curvature: Tensor, directions: Tensor, declared: Definite) -> None:
        """Marks rows that met pᵀAp <= 0 (or NaN)."""
        for row, value, p in zip(rows.tolist(), curvature.tolist(), directions, strict=True):
            if value != value:
                self.status[row] = Status.NOT_FINITE
                self.advice[row] = f"the product with the curvature is not finite at step {int(self.steps[row])}."
                continue
            self.status[row] = Status.INDEFINITE
            self.advice[row] = _indefinite(value / float(p.square().sum()), int(self.steps[row]), declared)


def _indefinite(rayleigh: float, step: int, declared: Definite) -> str:
    if declared is not Definite.UNKNOWN:  # a Gauss-Newton matrix: to advise one would not help
        return (
            f"CG met non-positive curvature ({rayleigh:.1e}) at step {step}.\n"
            f"  It is declared {declared.value}, as it is where loss and penalty are convex: this is rounding along a "
            "direction without curvature, or one of the two is not convex.\n"
            f"  Raise damping by at least {abs(rayleigh):.1e} (the smallest eigenvalue is that low or lower), or use "
            "float64."
        )
    return (
        f"CG met non-positive curvature ({rayleigh:.1e}) at step {step}.\n"
        "  The damped curvature is indefinite at this checkpoint: is it trained to a minimum?\n"
        f"  Either raise damping by at least {abs(rayleigh):.1e} (the smallest eigenvalue is that low or lower), or "
        "use curvature GaussNewton, which is positive semi-definite."
    )


def _missed(residual: float, rtol: float, steps: int, max_steps: int, dtype: torch.dtype) -> str:
    remedy = (
        f"raise max_steps (now {max_steps}), add damping, or give a preconditioner"
        if steps >= max_steps
        else f"{dtype} cannot reach it here: use float64, a larger rtol, or damping"
    )
    return f"CG reached a relative residual of {residual:.1e} in {steps} steps, {rtol:.1e} was asked for; {remedy}."
