"""Randomised Nyström preconditioner, which reduces the largest eigenvalues of the operator."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ifloo.curvature import LinearOperator
from ifloo.errors import InputError
from ifloo.solvers.base import Preconditioner, PreparedPreconditioner, SolveError
from ifloo.solvers.indefinite import damping_remedy, lowest_eigenvalue


@dataclass(frozen=True)
class Nystrom(Preconditioner):
    """P = σ_r U diag(1/σ) Uᵀ + (I − U Uᵀ) with the low-rank A ≈ U diag(σ) Uᵀ from one block of random products.

    The eigenvalues of P A lie between the smallest of A and about σ_r. The sketch may use a subsample of the data: a
    preconditioner changes the number of steps, never the solution.

    Source: Frangella, Tropp & Udell 2023, SIAM J. Matrix Anal. Appl. 44(2), alg. 2.1 and eq. (5.3).

    Attributes:
        rank: Number r of eigenvalues that are reduced, at most p.
        rows: Number of samples in the sketch; None for all, as for an operator that cannot be sampled.
        seed: Random seed of the random vectors and the subsample.
        block: Number of vectors per product.

    Examples:
        >>> import torch
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> from ifloo.curvature import Damped, Hessian, dense
        >>> from ifloo.models import LogisticRegression
        >>> from ifloo.objective import Objective
        >>> from ifloo.solvers import CG, Nystrom
        >>> model = LogisticRegression(num_features=3, num_classes=2, l2_reg=0.1)
        >>> draw = torch.Generator().manual_seed(0)
        >>> data = TensorDataset(torch.randn(20, 3, generator=draw).double(), torch.arange(20) % 2)
        >>> objective, v = Objective.of(model, DataLoader(data)), torch.linspace(-1, 1, 6).double()
        >>> theta = objective.losses.theta()
        >>> A = Damped(Hessian(objective, theta), 0.1)
        >>> solution = CG(preconditioner=Nystrom(rank=4)).prepare(A).solve(v[None]).require()
        >>> torch.allclose(solution.value @ dense(A), v[None])
        True
    """

    rank: int = 300
    rows: int | None = 4096
    seed: int = 0
    block: int = 50

    def __post_init__(self) -> None:
        """Checks the settings.

        Raises:
            InputError: `rank` or `rows` is below 1.
        """
        if self.rank < 1 or (self.rows is not None and self.rows < 1):
            raise InputError(f"Nystrom needs rank >= 1 and rows >= 1 (or null), got {self.rank} and {self.rows}.")

    def prepare(self, A: LinearOperator) -> PreparedNystrom:
        """Computes the low-rank approximation of A.

        Raises:
            SolveError: The sketch is not finite, or A is not positive definite.
        """
        generator = torch.Generator().manual_seed(self.seed)
        sketched = A
        if self.rows is not None and A.sampler is not None:
            sketched = A.sampler.subsampled(self.rows, generator)
        rank = min(self.rank, A.size)
        omega = torch.randn(A.size, rank, generator=generator, dtype=torch.float64).to(A.device, A.dtype)
        omega = torch.linalg.qr(omega).Q
        Y = torch.cat([sketched.matmat(v) for v in omega.T.split(self.block)]).T
        if not torch.isfinite(Y).all():
            raise SolveError("The Nyström sketch of the curvature holds NaN or infinity at this checkpoint.")
        shift = torch.finfo(A.dtype).eps * Y.norm() * A.size**0.5
        Y = Y + shift * omega
        core, failed = torch.linalg.cholesky_ex(omega.T @ Y)
        if int(failed):
            raise SolveError(_not_definite(A, omega, omega.T @ Y))
        factor = torch.linalg.solve_triangular(core, Y.T, upper=False).T
        U, sigma, _ = torch.linalg.svd(factor, full_matrices=False)
        eigenvalues = sigma.square() - shift
        # An eigenvalue near the shift is rounding error; as σ_r it would make P almost singular.
        rank = max(1, int((eigenvalues > 10 * shift).sum()))
        return PreparedNystrom(U[:, :rank], eigenvalues[:rank])


class PreparedNystrom(PreparedPreconditioner):
    """The low-rank factors of P."""

    def __init__(self, U: Float[Tensor, "p r"], eigenvalues: Float[Tensor, " r"]) -> None:
        self.U = U
        self.shrink = eigenvalues[-1] / eigenvalues - 1

    def apply(self, R: Float[Tensor, "k p"]) -> Float[Tensor, "k p"]:
        return R + ((R @ self.U) * self.shrink) @ self.U.T


def _not_definite(A: LinearOperator, omega: Float[Tensor, "p r"], sketch: Float[Tensor, "r r"]) -> str:
    start = omega @ torch.linalg.eigh(sketch).eigenvectors[:, 0]  # the direction of lowest curvature in the sketch
    lowest = lowest_eigenvalue(A, start)
    return (
        f"The curvature is not positive definite: its smallest eigenvalue is about {lowest.value:.1e}. It has no "
        f"Nyström preconditioner.\n  {damping_remedy(A, lowest)}"
    )
