"""Floor 3: solvers of A x = b for symmetric operators. They depend on operators only, not on models."""

from ifloo.progress import bar
from ifloo.solvers.auto import Auto
from ifloo.solvers.base import (
    Preconditioner,
    Prepared,
    PreparedPreconditioner,
    Solution,
    SolveError,
    Solver,
    Status,
    relative_residual,
    status_text,
)
from ifloo.solvers.cg import CG
from ifloo.solvers.cholesky import Cholesky
from ifloo.solvers.kronecker import Kronecker
from ifloo.solvers.lissa import LiSSA
from ifloo.solvers.nystrom import Nystrom
from ifloo.solvers.subsampled import Subsampled

__all__ = [
    "CG",
    "Auto",
    "Cholesky",
    "Kronecker",
    "LiSSA",
    "Nystrom",
    "Preconditioner",
    "Prepared",
    "PreparedPreconditioner",
    "Solution",
    "SolveError",
    "Solver",
    "Status",
    "Subsampled",
    "bar",
    "relative_residual",
    "status_text",
]
