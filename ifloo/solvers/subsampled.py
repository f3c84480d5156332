"""Preconditioner from the Cholesky factor of the curvature of a subsample."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ifloo.curvature import LinearOperator, stochastic
from ifloo.errors import InputError
from ifloo.solvers.base import Preconditioner, PreparedPreconditioner
from ifloo.solvers.cholesky import Cholesky, PreparedCholesky


@dataclass(frozen=True)
class Subsampled(Preconditioner):
    """P = A_S⁻¹ by Cholesky, for operators with a small core; A_S is the operator over a subsample S of the data.

    With m samples and an effective dimension well below m, the eigenvalues of P A lie close to 1 (Tropp 2015,
    arXiv:1501.01571, thm 1.6.2), whatever the condition number of A, so that CG needs few steps.

    Attributes:
        rows: Number of samples in S, drawn with replacement.
        seed: Random seed of the draw.

    Examples:
        >>> import torch
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> from ifloo.curvature import Damped, LinearHead, dense
        >>> from ifloo.models import LogisticRegression
        >>> from ifloo.objective import Objective
        >>> from ifloo.solvers import CG, Subsampled
        >>> model = LogisticRegression(num_features=3, num_classes=2, l2_reg=0.1)
        >>> draw = torch.Generator().manual_seed(0)
        >>> data = TensorDataset(torch.randn(20, 3, generator=draw).double(), torch.arange(20) % 2)
        >>> objective, v = Objective.of(model, DataLoader(data)), torch.linspace(-1, 1, 6).double()
        >>> theta = objective.losses.theta()
        >>> A = Damped(LinearHead(objective, theta), 0.1)
        >>> solution = CG(preconditioner=Subsampled(rows=10)).prepare(A).solve(v[None]).require()
        >>> torch.allclose(solution.value @ dense(A), v[None])
        True
    """

    rows: int = 4096
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks the settings.

        Raises:
            InputError: `rows` is below 1.
        """
        if self.rows < 1:
            raise InputError(f"Subsampled needs rows >= 1, got {self.rows}.")

    def prepare(self, A: LinearOperator) -> PreparedSubsampled:
        """Draws the subsample and factorises its operator.

        Raises:
            InputError: The operator cannot be sampled.
            SolveError: The operator over the subsample is not positive definite.
        """
        generator = torch.Generator().manual_seed(self.seed)
        return PreparedSubsampled(Cholesky().prepare(stochastic(A).subsampled(self.rows, generator)))


class PreparedSubsampled(PreparedPreconditioner):
    """The Cholesky factor of the operator over the subsample."""

    def __init__(self, factor: PreparedCholesky) -> None:
        self.factor = factor

    def apply(self, R: Float[Tensor, "k p"]) -> Float[Tensor, "k p"]:
        return self.factor.apply_inverse(R)
