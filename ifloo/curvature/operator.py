"""Symmetric maps on flat parameter vectors: what a solver sees of a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum

import torch
from jaxtyping import Float
from torch import Tensor

from ifloo.errors import InputError
from ifloo.progress import OnProgress, no_progress

Tick = OnProgress  # its name before it moved to ifloo.progress


class Definite(Enum):
    """What is known of an operator's eigenvalues before any work."""

    POSITIVE = "positive definite"
    SEMI = "positive semi-definite"
    UNKNOWN = "of unknown sign"


@dataclass(frozen=True)
class Core:
    """A = E M Eᵀ + (I − E Eᵀ) D: dense on a subspace, diagonal on the rest of it, E an isometry with E d = D E.

    Attributes:
        matrix: M, `[q, q]`.
        rest: D, `[p]`.
        inside: d, `[q]`, what D is within the subspace.
        reduce: V -> Vᵀ E, `[k, p]` to `[k, q]`.
        expand: its transpose, `[k, q]` to `[k, p]`.
    """

    matrix: Float[Tensor, "q q"]
    rest: Float[Tensor, " p"]
    inside: Float[Tensor, " q"]
    reduce: Callable[[Tensor], Tensor]
    expand: Callable[[Tensor], Tensor]

    def product(self, V: Float[Tensor, "k p"]) -> Float[Tensor, "k p"]:
        """A v of each row."""
        inner = self.reduce(V)
        return self.expand(inner @ self.matrix - self.inside * inner).addcmul_(self.rest, V)


@dataclass(frozen=True)
class KroneckerFactors:
    """S̄ ⊗ Ā + diagonal, close to an operator on matrices `[c, d]`.

    Attributes:
        inputs: Ā, `[d, d]`.
        outputs: S̄, `[c, c]`.
        diagonal: what is added, a mean over the inputs.
        matrices: `[k, p]` to `[k, c, d]`.
        flat: the inverse.
    """

    inputs: Float[Tensor, "d d"]
    outputs: Float[Tensor, "c c"]
    diagonal: float
    matrices: Callable[[Tensor], Tensor]
    flat: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Cost:
    """What an operator asks of a machine, for whoever chooses how to solve with it.

    Attributes:
        product: floating-point operations of one product.
        core: those of building the core.
        size: q, of the core.
    """

    product: float
    core: float
    size: int


class LinearOperator(ABC):
    """A symmetric map A on `[p]`; its one primitive is `matmat`, row by row.

    Curvatures of J are in nats per squared parameter.

    Attributes:
        size: p.
        dtype: of the vectors it takes and gives.
        device: where they are.
        definite: what is known of its eigenvalues before any work.
    """

    size: int
    dtype: torch.dtype
    device: torch.device
    definite: Definite

    @abstractmethod
    def matmat(self, V: Float[Tensor, "k p"]) -> Float[Tensor, "k p"]:
        """Each row of V multiplied by A."""

    def streamed(self, V: Float[Tensor, "k p"]) -> Float[Tensor, "k p"]:
        """The same product from the data themselves, whatever dense form `matmat` may use by now."""
        return self.matmat(V)

    def core(self, tick: OnProgress = no_progress) -> Core | None:
        """The operator's dense core where it knows one that is cheaper than p products; None otherwise."""
        return None

    @property
    def cost(self) -> Cost | None:
        """None where it is not known."""
        return None

    has_kronecker: bool = False

    @property
    def is_dense(self) -> bool:
        """Whether `matmat` is by a dense form by now, and not from the data."""
        return False

    def kronecker(self) -> KroneckerFactors | None:
        """A Kronecker product close to the operator, where its structure gives one; None otherwise."""
        return None


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
        self.has_kronecker = base.has_kronecker
        semi_and_damped = self.base.definite is Definite.SEMI and self.damping > 0
        self.definite = Definite.POSITIVE if semi_and_damped else self.base.definite

    def matmat(self, V: Float[Tensor, "k p"]) -> Float[Tensor, "k p"]:
        return self.base.matmat(V) + self.damping * V

    def streamed(self, V: Float[Tensor, "k p"]) -> Float[Tensor, "k p"]:
        return self.base.streamed(V) + self.damping * V

    def core(self, tick: OnProgress = no_progress) -> Core | None:
        found = self.base.core(tick)
        if found is None:
            return None
        matrix = found.matrix.clone()
        matrix.diagonal().add_(self.damping)
        return replace(found, matrix=matrix, rest=found.rest + self.damping, inside=found.inside + self.damping)

    @property
    def cost(self) -> Cost | None:
        return self.base.cost

    @property
    def is_dense(self) -> bool:
        return self.base.is_dense

    def kronecker(self) -> KroneckerFactors | None:
        found = self.base.kronecker()
        return found and replace(found, diagonal=found.diagonal + self.damping)

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


def dense(operator: LinearOperator, block: int = 64, tick: OnProgress = no_progress) -> Float[Tensor, "p p"]:
    """The matrix of an operator, from products with blocks of unit vectors, made exactly symmetric."""
    p = operator.size
    matrix = torch.empty(p, p, dtype=operator.dtype, device=operator.device)
    for start in range(0, p, block):
        stop = min(start + block, p)
        unit = torch.zeros(stop - start, p, dtype=operator.dtype, device=operator.device)
        unit[:, start:stop].fill_diagonal_(1)
        matrix[start:stop] = operator.matmat(unit)
        tick(stop, p)
    return matrix.add_(matrix.T.clone()).mul_(0.5)
