"""Dense Cholesky factorisation: an exact solver for operators whose matrix (or dense core) fits into memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ifloo.curvature import Core, LinearOperator, dense
from ifloo.errors import InputError
from ifloo.progress import OnProgress, no_progress
from ifloo.solvers.base import (
    NOT_FINITE_ADVICE,
    Prepared,
    Solution,
    SolveError,
    Solver,
    Status,
    relative_residual,
)
from ifloo.solvers.indefinite import Lowest, damping_remedy
from ifloo.solvers.tolerances import CHOLESKY_RTOL, default_rtol

IN_DOUBLE = 2  # steps of refinement with residuals in float64
COLUMNS = 512  # columns of a float32 matrix that are converted to float64 at once
SHARP = 1e-2  # share of the tolerance; a residual below it needs no refinement


@dataclass(frozen=True)
class Cholesky(Solver):
    """One factorisation A = L Lᵀ, two triangular solves per right-hand side, and refinement if needed.

    If the operator has a dense core (`LinearHead`), only the core is factorised. Otherwise the matrix is built from p
    products.

    Attributes:
        max_bytes: Memory allowed for the matrix and its factor together, bytes.
        rtol: Relative residual to reach; None for 1e-10 in float64, 1e-4 in float32.
        block: Number of unit vectors per product while the matrix is built.

    Examples:
        >>> import torch
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> from ifloo.curvature import Damped, Hessian, dense
        >>> from ifloo.models import LogisticRegression
        >>> from ifloo.objective import Objective
        >>> from ifloo.solvers import Cholesky
        >>> model = LogisticRegression(num_features=3, num_classes=2, l2_reg=0.1)
        >>> draw = torch.Generator().manual_seed(0)
        >>> data = TensorDataset(torch.randn(20, 3, generator=draw).double(), torch.arange(20) % 2)
        >>> objective, v = Objective.of(model, DataLoader(data)), torch.linspace(-1, 1, 6).double()
        >>> theta = objective.losses.theta()
        >>> A = Damped(Hessian(objective, theta), 0.1)
        >>> solution = Cholesky().prepare(A).solve(v[None]).require()
        >>> torch.allclose(solution.value @ dense(A), v[None])
        True
    """

    max_bytes: int = 4 << 30
    rtol: float | None = None
    block: int = 64

    def __post_init__(self) -> None:
        """Checks the settings.

        Raises:
            InputError: `rtol` is outside (0, 1), or `max_bytes` or `block` is below 1.
        """
        if self.rtol is not None and not 0 < self.rtol < 1:
            raise InputError(f"Cholesky needs a tolerance 0 < rtol < 1 (or null), got {self.rtol}.")
        if min(self.max_bytes, self.block) < 1:
            raise InputError(f"Cholesky needs max_bytes and block >= 1, got {self.max_bytes} and {self.block}.")

    def prepare(self, A: LinearOperator, tick: OnProgress = no_progress) -> PreparedCholesky:
        """Builds and factorises the matrix.

        Raises:
            InputError: The matrix and its factor exceed `max_bytes`.
            SolveError: A is not positive definite.
        """
        structure = A.structure
        size = structure.cost.size if structure.cost else A.size
        need = bytes_needed(size, A.dtype)
        if need > self.max_bytes:
            raise InputError(
                f"Cholesky of p = {size:,} parameters needs {need / 2**30:.1f} GiB (matrix and factor, {A.dtype}); "
                f"max_bytes allows {self.max_bytes / 2**30:.1f} GiB.\n"
                "  Use solver CG, which needs products only, or raise max_bytes if enough memory is available."
            )
        core = structure.dense.build(tick) if structure.dense else _whole_matrix(A, self.block, tick)
        factor, failed_at = torch.linalg.cholesky_ex(core.matrix)
        if int(failed_at) or not torch.isfinite(factor.diagonal()).all():
            raise SolveError(_not_definite(core.matrix, A))
        rtol = self.rtol or default_rtol(CHOLESKY_RTOL, A.dtype)
        return PreparedCholesky(A, core, factor, rtol)


class PreparedCholesky(Prepared):
    """The Cholesky factor of one operator."""

    efficient_rows = 1024

    def __init__(self, A: LinearOperator, core: Core, factor: Float[Tensor, "q q"], rtol: float) -> None:
        self.A, self.core, self.factor, self.rtol = A, core, factor, rtol

    def solve(self, B: Float[Tensor, "k p"]) -> Solution:
        X = self.apply_inverse(B)
        residual = relative_residual(self.A, X, B)
        refined = residual > SHARP * self.rtol
        if bool(refined.any()):
            X[refined] = self._refined(B[refined], X[refined])
            residual[refined] = relative_residual(self.A, X[refined], B[refined])
        judged = [self._judged(r, bool(torch.isfinite(b).all())) for r, b in zip(residual.tolist(), B, strict=True)]
        steps = 1 + refined.cpu().long()
        return Solution(X, residual, steps, tuple(s for s, _ in judged), tuple(a for _, a in judged))

    def quadratic_forms(self, B: Float[Tensor, "g r p"]) -> Float[Tensor, "g r r"]:
        """Returns B_i A⁻¹ B_iᵀ by one triangular solve each, to the accuracy of the factor, without refinement."""
        flat = B.flatten(0, 1)
        inner = self.core.reduce(flat)
        half: Tensor = torch.linalg.solve_triangular(self.factor, inner.T, upper=False).T.reshape(*B.shape[:2], -1)
        outside = (flat - self.core.expand(inner)).view_as(B)
        return half @ half.mT + (outside * _inverse(self.core.rest)) @ outside.mT

    def apply_inverse(self, B: Float[Tensor, "k p"]) -> Float[Tensor, "k p"]:
        """Returns A⁻¹b of each row by the factor alone, without refinement and without a residual."""
        inner = self.core.reduce(B)
        return self._whole(self._by_factor(inner), inner, B)

    def _by_factor(self, inner: Float[Tensor, "k q"]) -> Float[Tensor, "k q"]:
        # cholesky_solve would copy the factor, hundreds of megabytes, at each call.
        half: Tensor = torch.linalg.solve_triangular(self.factor, inner.T, upper=False)
        solved: Tensor = torch.linalg.solve_triangular(self.factor.T, half, upper=True).T
        return solved

    def _whole(self, solved: Tensor, inner: Float[Tensor, "k q"], B: Float[Tensor, "k p"]) -> Float[Tensor, "k p"]:
        """Returns A⁻¹b of each row from its part in the core."""
        return self.core.expand(solved - _inverse(self.core.inside) * inner).addcmul_(_inverse(self.core.rest), B)

    def _refined(self, B: Float[Tensor, "k p"], X: Float[Tensor, "k p"]) -> Float[Tensor, "k p"]:
        """Returns the solutions after one step of refinement, or after two with residuals in float64.

        Float64 residuals remove the error κ · eps of a float32 factor up to κ = 1 / eps.
        Source: Higham 2002, Accuracy and Stability of Numerical Algorithms, theorem 12.1.
        """
        if B.dtype is torch.float64 or B.device.type == "mps":
            return X + self.apply_inverse(B - self.A.matmat(X))
        inner = self.core.reduce(B)
        solved = self._by_factor(inner).double()
        for _ in range(IN_DOUBLE):
            solved += self._by_factor((inner.double() - self._product_in_double(solved)).to(inner.dtype)).double()
        return self._whole(solved.to(inner.dtype), inner, B)

    def _product_in_double(self, U: Float[Tensor, "k q"]) -> Float[Tensor, "k q"]:
        """Multiplies each row by the core in float64, which is converted in blocks of columns."""
        return torch.cat([U @ block.double() for block in self.core.matrix.split(COLUMNS, dim=1)], dim=1)

    def _judged(self, residual: float, finite: bool) -> tuple[Status, str]:
        if not finite:
            return Status.NOT_FINITE, NOT_FINITE_ADVICE
        if residual <= self.rtol:
            return Status.CONVERGED, ""
        return Status.NOT_CONVERGED, _missed(residual, self.rtol, self.A.dtype)


def bytes_needed(size: int, dtype: torch.dtype) -> int:
    """Returns the memory of a matrix with this number of rows and its factor, bytes."""
    return 2 * size**2 * torch.finfo(dtype).bits // 8


def _whole_matrix(A: LinearOperator, block: int, tick: OnProgress) -> Core:
    """Builds the matrix of A as a core whose subspace is the whole space."""
    no_rest = torch.zeros(A.size, dtype=A.dtype, device=A.device)
    return Core(dense(A, block, tick), no_rest, no_rest, _identity, _identity)


def _inverse(diagonal: Float[Tensor, " p"]) -> Float[Tensor, " p"]:
    """Returns 1/D, and 0 where D = 0: a right-hand side with a part there has no solution, as its residual shows."""
    return torch.where(diagonal > 0, 1 / diagonal, 0.0)


def _identity(V: Tensor) -> Tensor:
    return V


def _missed(residual: float, rtol: float, dtype: torch.dtype) -> str:
    return (
        f"Cholesky left a relative residual of {above(residual, rtol)}, above the tolerance of {rtol:.1e}: the matrix "
        f"is too ill-conditioned for {dtype}, or the test gradient reaches weights that no training sample and no "
        "penalty touch; use float64 (--attribution.dtype float64), a penalty or damping."
    )


def above(value: float, bound: float) -> str:
    """Formats a number above a bound, with as many digits as tell the two apart."""
    return next((text for d in (1, 2, 3) if (text := f"{value:.{d}e}") != f"{bound:.{d}e}"), f"{value:.6e}")


def _not_definite(matrix: Float[Tensor, "q q"], A: LinearOperator) -> str:
    if not torch.isfinite(matrix).all():
        return "The curvature holds NaN or infinity: the loss has no finite second derivative at this checkpoint."
    lowest = _smallest_eigenvalue(matrix)
    largest = float(matrix.diagonal().max()) * len(matrix) ** 0.5  # rounding then is that of a sum of len(matrix) terms
    return (
        f"The curvature is not positive definite: its smallest eigenvalue is {lowest:.1e}.\n"
        f"  {damping_remedy(A, Lowest(lowest, 0.0, largest))}"
    )


def _smallest_eigenvalue(matrix: Float[Tensor, "p p"]) -> float:
    if len(matrix) <= 2000:
        return float(torch.linalg.eigvalsh(matrix)[0])
    from scipy.sparse.linalg import ArpackNoConvergence, eigsh

    try:
        return float(eigsh(matrix.cpu().numpy(), k=1, which="SA", tol=1e-2, return_eigenvectors=False)[0])
    except ArpackNoConvergence:  # ARPACK can fail if many eigenvalues are small; use the slow method
        return float(torch.linalg.eigvalsh(matrix)[0])
