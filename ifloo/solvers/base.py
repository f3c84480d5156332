"""Solver (how) and solution (what happened): failure is data first, an exception second."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ifloo.curvature import LinearOperator
from ifloo.errors import WorkError
from ifloo.progress import OnProgress, no_progress


class Status(Enum):
    """How the solve of one right-hand side ended, or what stands in place of a solve.

    Files store the name of a status, such as `FIXED_STEPS`; `status_text` gives the text to display.
    """

    CONVERGED = "converged"
    FIXED_STEPS = "fixed steps"  # all steps taken, by design without a tolerance; judge by the residual
    NOT_CONVERGED = "not converged"
    INDEFINITE = "indefinite"
    DIVERGED = "diverged"
    NOT_FINITE = "not finite"
    REPLAYED = "replayed"  # no solve: scores that follow the recorded run
    NO_SOLVE = "no solve"  # scores that need neither a solve nor a replay


def status_text(stored: str) -> str:
    """The text to display for a status as it is stored: `Status[stored].value`; a name of no status reads likewise."""
    return stored.lower().replace("_", " ")


class SolveError(WorkError):
    """A solve that must not be used; says what, where, how much and what to do next."""


@dataclass(frozen=True)
class Solution:
    """x with A x ≈ b for k right-hand sides, with its certificate.

    Attributes:
        value: `[k, p]`.
        residual: `[k]`, ‖b − A x‖ / ‖b‖, recomputed from A on the full data (0 for b = 0).
        steps: `[k]`, steps used.
        status: one of each right-hand side.
        advice: what went wrong and what to do, one of each right-hand side, empty where all is well.
        standard_error: `[k, p]` between repeats, of stochastic solvers only.
    """

    value: Float[Tensor, "k p"]
    residual: Float[Tensor, " k"]
    steps: Int[Tensor, " k"]
    status: tuple[Status, ...]
    advice: tuple[str, ...]
    standard_error: Float[Tensor, "k p"] | None = None

    def require(self, first: int = 0, total: int | None = None) -> Solution:
        """The solution, for callers that cannot use a poor one.

        Args:
            first: number of the first right-hand side among all queries, where these are one block of more.
            total: number of all queries; None: these are all.

        Raises:
            SolveError: any right-hand side neither converged nor took its fixed number of steps.
        """
        fine = (Status.CONVERGED, Status.FIXED_STEPS)
        failed = [i for i, s in enumerate(self.status) if s not in fine]
        if failed:
            lines = [f"query {first + i + 1} of {total or len(self.status)}: {self.advice[i]}" for i in failed[:3]]
            more = f"\n  ... and {len(failed) - 3} more" if len(failed) > 3 else ""
            raise SolveError("\n  ".join(lines) + more)
        return self


NOT_FINITE_ADVICE = "the right-hand side holds NaN or infinity; the test loss has no finite gradient here."

Progress = Callable[[int, float], None]  # (steps so far, worst relative residual as the recurrence sees it)


silent = no_progress  # its name before it moved to ifloo.progress


class Prepared(ABC):
    """A solver made ready for one operator (factors held, if it has any).

    Attributes:
        progress: called after every step of an iterative solve, if set.
        at_once: right-hand sides to solve for together, at least; a factor that is read from memory serves many.
    """

    progress: Progress | None = None
    at_once: int = 1

    @abstractmethod
    def solve(self, B: Float[Tensor, "k p"]) -> Solution:
        """Solves A x = b for each row of B.

        A solve that failed is no exception here: it is in `status` and `advice` (`Solution.require` raises).
        """

    def quadratic_forms(self, B: Float[Tensor, "g r p"]) -> Float[Tensor, "g r r"]:
        """B_i A⁻¹ B_iᵀ for each of g small blocks of rows.

        Raises:
            SolveError: a row's solve cannot be used.
        """
        X = self.solve(B.flatten(0, 1)).require().value.view_as(B)
        return B @ X.mT


class Solver(ABC):
    """How to solve; knows operators, never a model."""

    @abstractmethod
    def prepare(self, A: LinearOperator, tick: OnProgress = no_progress) -> Prepared:
        """Does the work that all right-hand sides share; `tick` is told how far it is, where there is much of it.

        Raises:
            InputError: A lacks what the solver needs, or would not fit the memory allowed.
            SolveError: A cannot be factorised or sketched.
        """

    def resolve(self, A: LinearOperator, right_hand_sides: int) -> Solver:
        """The solver that does the work for so many right-hand sides: this one, unless it is one that chooses."""
        return self


class Preconditioner(ABC):
    """An approximate inverse of an operator, made once."""

    @abstractmethod
    def prepare(self, A: LinearOperator) -> PreparedPreconditioner:
        """Does the work that all uses share."""


class PreparedPreconditioner(ABC):
    """P ≈ A⁻¹, symmetric positive definite."""

    @abstractmethod
    def apply(self, R: Float[Tensor, "k p"]) -> Float[Tensor, "k p"]:
        """P r for each row."""


def relative_residual(A: LinearOperator, X: Float[Tensor, "k p"], B: Float[Tensor, "k p"]) -> Float[Tensor, " k"]:
    """‖b − A x‖ / ‖b‖ of each row; 0 where b = 0.

    Where products come from a dense form of A, what that form misses of the data is added to every row: the length of
    Σ_k z_k (A − dense) x_k / ‖b_k‖ with random signs z, one pass over the data for all rows. Its mean square is the sum
    of the squares of what each row misses.
    """
    norms = B.norm(dim=1)
    residual: Tensor = (B - A.matmat(X)).norm(dim=1)
    residual = torch.where(norms > 0, residual / norms.clamp_min(torch.finfo(B.dtype).tiny), residual)
    dense = A.structure.dense
    if dense is None or not dense.is_built():
        return residual
    usable = torch.isfinite(norms) & (norms > 0) & torch.isfinite(residual)
    signs = torch.randint(2, (len(B),), generator=torch.Generator().manual_seed(0)).to(B) * 2 - 1
    mixed = (torch.where(usable, signs / norms, 0.0)[usable] @ X[usable]).unsqueeze(0)
    missed: Tensor = (dense.streamed(mixed) - A.matmat(mixed)).norm()
    return residual + missed
