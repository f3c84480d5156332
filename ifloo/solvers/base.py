"""Base classes of solvers and preconditioners, and the solution with its status.

A failed solve is recorded in the solution; it raises an exception only on `Solution.require`.
"""

from __future__ import annotations

import re
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
    """Outcome of the solve for one right-hand side, or the reason why scores need no solve.

    Files store the name of a status, such as `FIXED_STEPS`; `status_text` gives the text to display.
    """

    CONVERGED = "converged"
    FIXED_STEPS = "fixed steps"  # a solver without a tolerance took all its steps; the residual tells the accuracy
    NOT_CONVERGED = "not converged"
    INDEFINITE = "indefinite"
    DIVERGED = "diverged"
    NOT_FINITE = "not finite"
    REPLAYED = "replayed"  # no solve: the scores follow the recorded run
    NO_SOLVE = "no solve"  # the scores need neither a solve nor a replay


def status_text(stored: str) -> str:
    """Returns the text to display for the stored name of a status, `Status[stored].value`; accepts any other name."""
    return stored.lower().replace("_", " ")


SHOWN = 3  # reasons that an error lists
_NUMBER = re.compile(r"\d[\d.e+-]*")


class SolveError(WorkError):
    """A solve whose result must not be used; the message tells what failed, where, by how much, and a remedy."""


@dataclass(frozen=True)
class Solution:
    """x with A x ≈ b for k right-hand sides, with its certificate.

    Attributes:
        value: Solutions x, `[k, p]`.
        residual: Relative residuals ‖b − A x‖ / ‖b‖, recomputed from A on the full data (0 for b = 0), `[k]`.
        steps: Number of steps, `[k]`.
        status: Status of each right-hand side.
        advice: Description of the failure and its remedy for each right-hand side; empty for a successful solve.
        standard_error: Standard error of x between repeats, `[k, p]`; None for deterministic solvers.
    """

    value: Float[Tensor, "k p"]
    residual: Float[Tensor, " k"]
    steps: Int[Tensor, " k"]
    status: tuple[Status, ...]
    advice: tuple[str, ...]
    standard_error: Float[Tensor, "k p"] | None = None

    def require(self, first: int = 0, total: int | None = None) -> Solution:
        """Returns the solution if every right-hand side is solved.

        Args:
            first: Index of the first right-hand side among all queries, for messages about one block of them.
            total: Number of all queries; None if this solution holds all of them.

        Raises:
            SolveError: A right-hand side neither converged nor took its fixed number of steps.
        """
        usable = (Status.CONVERGED, Status.FIXED_STEPS)
        failed = [i for i, s in enumerate(self.status) if s not in usable]
        if failed:
            alike: dict[str, list[int]] = {}
            for i in failed:
                alike.setdefault(_NUMBER.sub("", self.advice[i]), []).append(i)
            groups, count = [(some[0], len(some) - 1) for some in alike.values()], total or len(self.status)
            lines = [f"query {first + one + 1} of {count}: {self.advice[one]}{_others(n)}" for one, n in groups]
            rest = sum(1 + others for _, others in groups[SHOWN:])
            raise SolveError("\n  ".join(lines[:SHOWN]) + (f"\n  ... and {rest} more" if rest else ""))
        return self


def _others(others: int) -> str:
    if not others:
        return ""
    return "\n  Another query fails likewise." if others == 1 else f"\n  {others} other queries fail likewise."


NOT_FINITE_ADVICE = "the right-hand side holds NaN or infinity; the test loss has no finite gradient here."

Progress = Callable[[int, float], None]  # (steps so far, worst relative residual by the recurrence)


silent = no_progress  # former name


class Prepared(ABC):
    """A solver prepared for one operator; it keeps the factors, if there are any.

    Attributes:
        progress: Callback after every step of an iterative solve, or None.
        efficient_rows: Smallest efficient number of right-hand sides per call: all of them share each read of a factor.
    """

    progress: Progress | None = None
    efficient_rows: int = 1

    @abstractmethod
    def solve(self, B: Float[Tensor, "k p"]) -> Solution:
        """Solves A x = b for each row of B.

        A failed solve raises no exception here: `status` and `advice` describe it, and `Solution.require` raises it.
        """

    def quadratic_forms(self, B: Float[Tensor, "g r p"]) -> Float[Tensor, "g r r"]:
        """Returns B_i A⁻¹ B_iᵀ for each of g small blocks of rows.

        Raises:
            SolveError: The solve of a row failed.
        """
        X = self.solve(B.flatten(0, 1)).require().value.view_as(B)
        return B @ X.mT


class Solver(ABC):
    """Settings of a solver, which depends on operators only, not on models.

    docs/adding.md shows how to add one.
    """

    @abstractmethod
    def prepare(self, A: LinearOperator, tick: OnProgress = no_progress) -> Prepared:
        """Does the work that all right-hand sides share, and reports its progress to `tick` if the work is long.

        Raises:
            InputError: A lacks a property that the solver needs, or the work exceeds the memory allowed.
            SolveError: A cannot be factorised or sketched.
        """

    def resolve(self, A: LinearOperator, right_hand_sides: int) -> Solver:
        """Returns the solver for this number of right-hand sides: itself, unless it chooses among others."""
        return self


class Preconditioner(ABC):
    """Settings of a preconditioner, an approximate inverse of an operator."""

    @abstractmethod
    def prepare(self, A: LinearOperator) -> PreparedPreconditioner:
        """Builds the approximate inverse once for all uses."""


class PreparedPreconditioner(ABC):
    """An approximate inverse P ≈ A⁻¹, symmetric positive definite."""

    @abstractmethod
    def apply(self, R: Float[Tensor, "k p"]) -> Float[Tensor, "k p"]:
        """Multiplies each row by P."""


def relative_residual(A: LinearOperator, X: Float[Tensor, "k p"], B: Float[Tensor, "k p"]) -> Float[Tensor, " k"]:
    """Returns ‖b − A x‖ / ‖b‖ of each row; 0 where b = 0.

    If products come from a dense form of A, the error of that form against the data is added to every row: the norm of
    Σ_k z_k (A − dense) x_k / ‖b_k‖ with random signs z, from one pass over the data for all rows. Its mean square is
    the sum of the squared errors of all rows.
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
    error_of_dense: Tensor = (dense.streamed(mixed) - A.matmat(mixed)).norm()
    return residual + error_of_dense
