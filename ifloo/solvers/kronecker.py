"""Kronecker preconditioner of a linear head, from the second moment of its inputs and its mean output curvature."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ifloo.curvature import KroneckerFactors, LinearOperator
from ifloo.errors import InputError
from ifloo.solvers.base import Preconditioner, PreparedPreconditioner, SolveError


@dataclass(frozen=True)
class Kronecker(Preconditioner):
    """P = (S̄ ⊗ Ā + λI)⁻¹ with Ā = mean of x xᵀ and S̄ = mean output curvature, by two small eigendecompositions.

    P is cheap to build (one product of the inputs with themselves) and to apply. It exists for a linear head only.

    Source: Martens & Grosse 2015, arXiv:1503.05671, section 3, with the exact output curvature.

    Examples:
        >>> import torch
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> from ifloo.curvature import Damped, LinearHead, dense
        >>> from ifloo.models import LogisticRegression
        >>> from ifloo.objective import Objective
        >>> from ifloo.solvers import CG, Kronecker
        >>> model = LogisticRegression(num_features=3, num_classes=2, l2_reg=0.1)
        >>> draw = torch.Generator().manual_seed(0)
        >>> data = TensorDataset(torch.randn(20, 3, generator=draw).double(), torch.arange(20) % 2)
        >>> objective, v = Objective.of(model, DataLoader(data)), torch.linspace(-1, 1, 6).double()
        >>> theta = objective.losses.theta()
        >>> A = Damped(LinearHead(objective, theta), 0.1)
        >>> solution = CG(preconditioner=Kronecker()).prepare(A).solve(v[None]).require()
        >>> torch.allclose(solution.value @ dense(A), v[None])
        True
    """

    def prepare(self, A: LinearOperator) -> PreparedKronecker:
        """Computes the eigendecompositions of the two factors.

        Raises:
            InputError: The operator is not a linear head.
            SolveError: The curvature is not finite.
        """
        kronecker = A.structure.kronecker
        if kronecker is None:
            raise InputError(
                f"The Kronecker preconditioner needs a linear head, got {type(A).__name__}.\n"
                "  Use curvature LinearHead for the parameters of one linear layer, or preconditioner Nystrom."
            )
        return PreparedKronecker(kronecker())


class PreparedKronecker(PreparedPreconditioner):
    """The eigenbases of the two factors and the inverted eigenvalues of their product."""

    def __init__(self, factors: KroneckerFactors) -> None:
        self.factors = factors
        # In float64: LAPACK may not converge on float32 moments of few samples, whose rank is low.
        a, self.U = (x.to(factors.inputs.dtype) for x in torch.linalg.eigh(factors.inputs.double()))
        s, self.V = (x.to(factors.outputs.dtype) for x in torch.linalg.eigh(factors.outputs.double()))
        products = torch.outer(s, a).clamp_min(0)
        lowest = torch.finfo(products.dtype).eps * products.max()  # a preconditioner must not be singular
        self.inverse = 1 / (products + factors.diagonal).clamp_min(lowest)
        if not torch.isfinite(self.inverse).all():
            raise SolveError("The curvature of the head holds NaN or infinity at this checkpoint.")

    def apply(self, R: Float[Tensor, "k p"]) -> Float[Tensor, "k p"]:
        M = self.factors.matrices(R)
        return self.factors.flat(self.V @ ((self.V.T @ M @ self.U) * self.inverse) @ self.U.T)
