"""What an operator knows of itself beyond its products: their cost, a dense core, a Kronecker product close to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

from ifloo.progress import OnProgress


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

    def damped(self, damping: float) -> Core:
        """The core of A + δI."""
        matrix = self.matrix.clone()
        matrix.diagonal().add_(damping)
        return replace(self, matrix=matrix, rest=self.rest + damping, inside=self.inside + damping)


@dataclass(frozen=True)
class KroneckerFactors:
    """S̄ ⊗ Ā + diagonal, close to an operator on matrices `[c, d]`.

    Attributes:
        inputs: Ā, `[d, d]`.
        outputs: S̄, `[c, c]`.
        diagonal: Scalar that is added to the diagonal, a mean over the inputs.
        matrices: Map from `[k, p]` to `[k, c, d]`.
        flat: Its inverse.
    """

    inputs: Float[Tensor, "d d"]
    outputs: Float[Tensor, "c c"]
    diagonal: float
    matrices: Callable[[Tensor], Tensor]
    flat: Callable[[Tensor], Tensor]

    def damped(self, damping: float) -> KroneckerFactors:
        """The factors of A + δI."""
        return replace(self, diagonal=self.diagonal + damping)


@dataclass(frozen=True)
class Cost:
    """What an operator asks of a machine, for a solver that chooses by cost.

    Attributes:
        product: Floating-point operations of one product.
        core: Floating-point operations to build the core.
        size: q, the size of the core.
    """

    product: float
    core: float
    size: int


@dataclass(frozen=True)
class DenseForm:
    """A dense core that is built when a solver asks for it, cheaper than by p products.

    Attributes:
        build: Function that gives the core; it is built at the first call.
        is_built: Function that tells whether it is, so that products come from it and no longer from the data.
        streamed: Product from the data themselves, whatever is built.
    """

    build: Callable[[OnProgress], Core]
    is_built: Callable[[], bool]
    streamed: Callable[[Tensor], Tensor]

    def damped(self, damping: float) -> DenseForm:
        """The dense form of A + δI."""
        return DenseForm(
            lambda on_progress: self.build(on_progress).damped(damping),
            self.is_built,
            lambda V: self.streamed(V) + damping * V,
        )


@dataclass(frozen=True)
class Structure:
    """What a solver may use of an operator besides products; each part is None where it is not known.

    Attributes:
        cost: Floating-point operations of products and of the dense core.
        dense: The dense core.
        kronecker: Function that gives a Kronecker product close to the operator.
    """

    cost: Cost | None = None
    dense: DenseForm | None = None
    kronecker: Callable[[], KroneckerFactors] | None = None

    def damped(self, damping: float) -> Structure:
        """The structure of A + δI."""
        dense, kronecker = self.dense, self.kronecker
        return Structure(
            self.cost,
            dense.damped(damping) if dense else None,
            (lambda: kronecker().damped(damping)) if kronecker else None,
        )
