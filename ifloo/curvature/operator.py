"""Symmetric maps on flat parameter vectors: what a solver sees of a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import Enum

import torch
from jaxtyping import Float
from torch import Tensor

from ifloo.errors import InputError


class Definite(Enum):
    """What is known of an operator's eigenvalues before any work."""

    POSITIVE = "positive definite"
    SEMI = "positive semi-definite"
    UNKNOWN = "of unknown sign"


class LinearOperator(ABC):
    """A symmetric map A on `[p]`; its one primitive is `matmat`, row by row."""

    size: int
    dtype: torch.dtype
    device: torch.device
    definite: Definite

    @abstractmethod
    def matmat(self, V: Float[Tensor, "k p"]) -> Float[Tensor, "k p"]:
        """Each row of V multiplied by A."""


class LockstepDraw(ABC):
    """Independent estimates A_1 … A_r of an operator, drawn together so that one call advances all of them."""

    @abstractmethod
    def matmat(self, V: Float[Tensor, "r k p"]) -> Float[Tensor, "r k p"]:
        """V[j] multiplied, row by row, by A_j."""


class StochasticOperator(LinearOperator):
    """An operator that is a mean over samples, so that a few samples give an unbiased estimate of it."""

    @abstractmethod
    def subsampled(self, rows: int, generator: torch.Generator) -> LinearOperator:
        """One estimate from `rows` samples, to be used many times."""

    @abstractmethod
    def draw(self, repeats: int, batch: int, generator: torch.Generator) -> LockstepDraw:
        """`repeats` independent estimates from `batch` samples each, to be used once."""


class Damped(StochasticOperator):
    """A + δI."""

    def __init__(self, base: LinearOperator, damping: float) -> None:
        """Wraps `base`.

        Raises:
            InputError: δ is negative or not finite.
        """
        if not 0 <= damping < float("inf"):
            raise InputError(
                f"Damping must be a finite number >= 0, got {damping}.\n"
                "  It is added to the curvature (H + damping·I); 0 gives the influence of the objective as it is."
            )
        inner = base if isinstance(base, Damped) else None
        # One damping in all, so that `base` is the undamped operator.
        self.base: LinearOperator = inner.base if inner else base
        self.damping: float = damping + (inner.damping if inner else 0.0)
        self.size, self.dtype, self.device = base.size, base.dtype, base.device
        semi_and_damped = self.base.definite is Definite.SEMI and self.damping > 0
        self.definite = Definite.POSITIVE if semi_and_damped else self.base.definite

    def matmat(self, V: Float[Tensor, "k p"]) -> Float[Tensor, "k p"]:
        return self.base.matmat(V) + self.damping * V

    def subsampled(self, rows: int, generator: torch.Generator) -> LinearOperator:
        return Damped(stochastic(self.base).subsampled(rows, generator), self.damping)

    def draw(self, repeats: int, batch: int, generator: torch.Generator) -> LockstepDraw:
        return _DampedDraw(stochastic(self.base).draw(repeats, batch, generator), self.damping)


class _DampedDraw(LockstepDraw):
    def __init__(self, base: LockstepDraw, damping: float) -> None:
        self.base, self.damping = base, damping

    def matmat(self, V: Float[Tensor, "r k p"]) -> Float[Tensor, "r k p"]:
        return self.base.matmat(V) + self.damping * V


def can_be_sampled(operator: LinearOperator) -> bool:
    """Whether the operator is a mean over samples; a damped one is if what it damps is."""
    return can_be_sampled(operator.base) if isinstance(operator, Damped) else isinstance(operator, StochasticOperator)


def stochastic(operator: LinearOperator) -> StochasticOperator:
    """The operator, if samples of it can be drawn.

    Raises:
        InputError: it is not a mean over samples.
    """
    if not isinstance(operator, StochasticOperator) or not can_be_sampled(operator):
        raise InputError(
            f"This solver draws samples of its operator; {_name(operator)} cannot be sampled.\n"
            "  Use Hessian or GaussNewton, or a solver that needs products only (CG, Cholesky)."
        )
    return operator


def _name(operator: LinearOperator) -> str:
    return _name(operator.base) if isinstance(operator, Damped) else type(operator).__name__


def dense(operator: LinearOperator, block: int = 64) -> Float[Tensor, "p p"]:
    """The matrix of an operator, from products with blocks of unit vectors, made exactly symmetric."""
    p = operator.size
    matrix = torch.empty(p, p, dtype=operator.dtype, device=operator.device)
    for start in range(0, p, block):
        stop = min(start + block, p)
        unit = torch.zeros(stop - start, p, dtype=operator.dtype, device=operator.device)
        unit[:, start:stop].fill_diagonal_(1)
        matrix[start:stop] = operator.matmat(unit)
    return matrix.add_(matrix.T.clone()).mul_(0.5)
