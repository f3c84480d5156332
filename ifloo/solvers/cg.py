"""Conjugate gradients for many right-hand sides (Hestenes & Stiefel 1952; preconditioned: Saad 2003, alg. 9.1)."""

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
from ifloo.solvers.indefinite import Lowest, damping_remedy, lowest_eigenvalue
from ifloo.solvers.tolerances import CG_RTOL, default_rtol

RESTARTS = 2  # maximum number of restarts after a recurrence that underestimated the residual


@dataclass(frozen=True)
class CG(Solver):
    """Conjugate gradients until the relative residual of each right-hand side is below `rtol`.

    At the end the residual is recomputed from the operator. If the recurrence underestimated it, the solve restarts
    from the current solution, at most twice, before it ends as not converged.

    Attributes:
        rtol: Relative residual to reach; None for 1e-10 in float64, 1e-6 in float32.
        max_steps: Maximum number of products with the operator, including those after restarts.
        preconditioner: Approximate inverse; None for plain CG.

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
            InputError: `rtol` is outside (0, 1), or `max_steps` is below 1.
        """
        if self.rtol is not None and not 0 < self.rtol < 1:
            raise InputError(f"CG needs a tolerance 0 < rtol < 1, got {self.rtol}.")
        if self.max_steps < 1:
            raise InputError(f"CG needs max_steps >= 1, got {self.max_steps}.")

    def prepare(self, A: LinearOperator, tick: OnProgress = no_progress) -> PreparedCG:
        return PreparedCG(self, A, self.preconditioner.prepare(A) if self.preconditioner else None)


class PreparedCG(Prepared):
    """CG prepared for one operator."""

    def __init__(self, settings: CG, A: LinearOperator, preconditioner: PreparedPreconditioner | None) -> None:
        self.settings, self.A, self.preconditioner = settings, A, preconditioner
        self.rtol = settings.rtol or default_rtol(CG_RTOL, A.dtype)

    def solve(self, B: Float[Tensor, "k p"]) -> Solution:
        run = _Run.start(B)
        residual = _initial_residual(run.norms)
        for _ in range(1 + RESTARTS):
            unfinished = [i for i, s in enumerate(run.status) if s is Status.NOT_CONVERGED and residual[i] > self.rtol]
            if not unfinished or int(run.steps.max()) >= self.settings.max_steps:
                break
            self._descend(run, B, unfinished)
            residual = relative_residual(self.A, run.X, B)
        return self._certified(run, residual)

    def _descend(self, run: _Run, B: Float[Tensor, "k p"], rows: list[int]) -> None:
        """Runs CG on the given rows from their current solutions; a row leaves the block when it finishes."""
        live = torch.tensor(rows, device=B.device)
        X = run.X[live]
        R = B[live] - self.A.matmat(X) if run.started else B[live]  # X = 0 at first: that product can be saved
        run.started = True
        Z = self._precondition(R)
        P, rho = Z, (R * Z).sum(1)
        while len(live):
            AP = self.A.matmat(P)
            run.steps[live.cpu()] += 1
            curvature = (P * AP).sum(1)
            non_positive = ~(curvature > 0)  # including NaN
            run.fail(live[non_positive], curvature[non_positive], P[non_positive], self.A)
            alpha = torch.where(non_positive, 0.0, rho / curvature)
            X = X + alpha[:, None] * P
            R = R - alpha[:, None] * AP
            converged = R.norm(dim=1) <= self.rtol * run.norms[live]
            out_of_steps = (run.steps[live.cpu()] >= self.settings.max_steps).to(converged.device)
            run.X[live] = X
            if self.progress:
                self.progress(int(run.steps.max()), float((R.norm(dim=1) / run.norms[live]).max()))
            keep = ~(non_positive | converged | out_of_steps)
            live, X, R, P, rho = live[keep], X[keep], R[keep], P[keep], rho[keep]
            if len(live):
                Z = self._precondition(R)
                rho, previous_rho = (R * Z).sum(1), rho
                P = Z + (rho / previous_rho)[:, None] * P

    def _precondition(self, R: Float[Tensor, "k p"]) -> Float[Tensor, "k p"]:
        return self.preconditioner.apply(R) if self.preconditioner else R

    def _certified(self, run: _Run, residual: Float[Tensor, " k"]) -> Solution:
        """Decides the status of each row by its recomputed residual."""
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


def _initial_residual(norms: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
    """Returns the relative residual of x = 0: 1, but 0 for b = 0 and NaN for a right-hand side that is not finite."""
    return torch.where(norms > 0, norms / norms, norms)


@dataclass
class _Run:
    """State of a solve, row by row of the right-hand sides.

    Attributes:
        X: Current solutions, `[k, p]`.
        steps: Number of products so far, `[k]`.
        norms: Norm ‖b‖ of each right-hand side, `[k]`.
        status: Status of each row; NOT_CONVERGED until the solve ends.
        advice: Description of the failure and its remedy for each row; empty without a failure.
        started: Whether any step was taken, so that X may differ from 0.
        lowest: Smallest eigenvalue of the operator, estimated after a direction of non-positive curvature.
    """

    X: Float[Tensor, "k p"]
    steps: Int[Tensor, " k"]
    norms: Float[Tensor, " k"]
    status: list[Status]
    advice: list[str]
    started: bool = False
    lowest: Lowest | None = None

    @classmethod
    def start(cls, B: Float[Tensor, "k p"]) -> _Run:
        """Starts from x = 0."""
        norms = B.norm(dim=1)
        status = [Status.NOT_CONVERGED if torch.isfinite(norm) else Status.NOT_FINITE for norm in norms]
        return cls(torch.zeros_like(B), torch.zeros(len(B), dtype=torch.int64), norms, status, [""] * len(B))

    def fail(self, rows: Tensor, curvature: Tensor, directions: Tensor, A: LinearOperator) -> None:
        """Ends rows with non-positive or NaN curvature pᵀAp along their direction p."""
        for row, value, p in zip(rows.tolist(), curvature.tolist(), directions, strict=True):
            if value != value:
                self.status[row] = Status.NOT_FINITE
                self.advice[row] = f"the product with the curvature is not finite at step {int(self.steps[row])}."
                continue
            self.status[row] = Status.INDEFINITE
            if self.lowest is None:
                self.lowest = lowest_eigenvalue(A, p)
            self.advice[row] = _indefinite(value / float(p.square().sum()), int(self.steps[row]), A, self.lowest)


def _indefinite(rayleigh: float, step: int, A: LinearOperator, lowest: Lowest) -> str:
    cause = (
        "The damped curvature is indefinite at this checkpoint: is it trained to a minimum?"
        if A.definite is Definite.UNKNOWN
        else "This is rounding along a direction without curvature, or loss or penalty is not convex."
    )
    return (
        f"CG met non-positive curvature ({rayleigh:.1e}) at step {step}; the smallest eigenvalue is about "
        f"{lowest.value:.1e}.\n  {cause}\n  {damping_remedy(A, lowest)}"
    )


def _missed(residual: float, rtol: float, steps: int, max_steps: int, dtype: torch.dtype) -> str:
    remedy = (
        f"raise max_steps (now {max_steps}), add damping, or give a preconditioner"
        if steps >= max_steps
        else f"{dtype} cannot reach it here: use float64, a larger rtol, or damping"
    )
    return (
        f"CG reached a relative residual of {residual:.1e} in {steps} steps, above the tolerance of {rtol:.1e}; "
        f"{remedy}."
    )
