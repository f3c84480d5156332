"""Choice of the solver by cost: conjugate gradients for few right-hand sides, Cholesky for many."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch

from ifloo.curvature import LinearOperator
from ifloo.errors import InputError
from ifloo.progress import OnProgress, no_progress
from ifloo.solvers.base import Prepared, Solver
from ifloo.solvers.cg import CG
from ifloo.solvers.cholesky import Cholesky, bytes_needed
from ifloo.solvers.kronecker import Kronecker
from ifloo.solvers.nystrom import Nystrom
from ifloo.solvers.tolerances import AUTO_RTOL, CHOLESKY_RTOL, default_rtol

log = logging.getLogger(__name__)
STEPS = {torch.float64: 55, torch.float32: 30}  # steps of preconditioned CG to its default tolerance, measured on MNIST
# Shares of the peak speed that products reach: with one vector they wait for memory, with BLOCK vectors they do not.
LONE_RATE, BLOCK_RATE, BLOCK = 0.25, 0.9, 16


@dataclass(frozen=True)
class Auto(Solver):
    """CG or Cholesky, whichever needs fewer operations for the given right-hand sides and fits into memory.

    Attributes:
        rtol: Relative residual that the chosen solver must reach; None for 1e-10 in float64, 1e-5 in float32
            (1e-4 for Cholesky, whose solution is refined with float64 residuals: its float32 residual is rounding).
        max_bytes: Memory allowed for the matrix and its factor together, bytes.

    Examples:
        >>> import torch
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> from ifloo.curvature import Damped, Hessian, dense
        >>> from ifloo.models import LogisticRegression
        >>> from ifloo.objective import Objective
        >>> from ifloo.solvers import Auto
        >>> model = LogisticRegression(num_features=3, num_classes=2, l2_reg=0.1)
        >>> draw = torch.Generator().manual_seed(0)
        >>> data = TensorDataset(torch.randn(20, 3, generator=draw).double(), torch.arange(20) % 2)
        >>> objective, v = Objective.of(model, DataLoader(data)), torch.linspace(-1, 1, 6).double()
        >>> theta = objective.losses.theta()
        >>> A = Damped(Hessian(objective, theta), 0.1)
        >>> solution = Auto().prepare(A).solve(v[None]).require()
        >>> torch.allclose(solution.value @ dense(A), v[None])
        True
    """

    rtol: float | None = None
    max_bytes: int = 4 << 30

    def __post_init__(self) -> None:
        """Checks the settings.

        Raises:
            InputError: `rtol` is outside (0, 1).
        """
        if self.rtol is not None and not 0 < self.rtol < 1:
            raise InputError(f"Auto needs a tolerance 0 < rtol < 1 (or null), got {self.rtol}.")

    def prepare(self, A: LinearOperator, tick: OnProgress = no_progress) -> Prepared:
        return self.resolve(A, 1).prepare(A, tick)

    def resolve(self, A: LinearOperator, right_hand_sides: int) -> Solver:
        """Returns the solver for this number of right-hand sides, and logs the choice and its reason in one line."""
        rtol = self.rtol or default_rtol(AUTO_RTOL, A.dtype)
        iterative = CG(rtol, preconditioner=Kronecker() if A.structure.kronecker else Nystrom())
        direct = Cholesky(self.max_bytes, self.rtol or default_rtol(CHOLESKY_RTOL, A.dtype))
        k, cost = right_hand_sides, A.structure.cost
        if cost is None:
            log.info("solver: CG, since the cost of this curvature is not known.")
            return iterative
        if (need := bytes_needed(cost.size, A.dtype)) > self.max_bytes:
            log.info(
                "solver: CG, since a factor of q = %s would take %.1f GiB (max_bytes %.1f GiB).",
                f"{cost.size:,}",
                need / 2**30,
                self.max_bytes / 2**30,
            )
            return iterative
        by_factor = cost.core + cost.size**3 / 3 + 8.0 * cost.size**2 * k
        rate = LONE_RATE + (BLOCK_RATE - LONE_RATE) * (min(k, BLOCK) - 1) / (BLOCK - 1)
        by_steps = STEPS.get(A.dtype, 30) * cost.product * k / rate
        name, chosen = ("CG", iterative) if by_steps < by_factor else (f"Cholesky of q = {cost.size:,}", direct)
        log.info(
            "solver: %s for %d right-hand side%s (about %.1e operations by CG, %.1e by Cholesky).",
            name,
            k,
            "" if k == 1 else "s",
            by_steps,
            by_factor,
        )
        return chosen
