"""Known structure of an operator: cost of products, a dense core, a Kronecker approximation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

from ifloo.progress import OnProgress


@dataclass(frozen=True)
class Core:
    """A = E M Eᵀ + (I − E Eᵀ) D: dense on a subspace, diagonal on its complement.

    E is an isometry with D E = E diag(d).

    Attributes:
        matrix: Dense matrix M on the subspace, `[q, q]`.
        rest: Diagonal D, `[p]`.
        inside: Diagonal d, the restriction of D to the subspace, `[q]`.
        reduce: Map V -> V E from `[k, p]` to `[k, q]`.
        expand: Map U -> U Eᵀ from `[k, q]` to `[k, p]`.
    """

    matrix: Float[Tensor, "q q"]
    rest: Float[Tensor, " p"]
    inside: Float[Tensor, " q"]
    reduce: Callable[[Tensor], Tensor]
    expand: Callable[[Tensor], Tensor]

    def product(self, V: Float[Tensor, "k p"]) -> Float[Tensor, "k p"]:
        """Multiplies each row of V by A."""
        inner = self.reduce(V)
        return self.expand(inner @ self.matrix - self.inside * inner).addcmul_(self.rest, V)

    def damped(self, damping: float) -> Core:
        """Returns the core of A + δI."""
        matrix = self.matrix.clone()
        matrix.diagonal().add_(damping)
        return replace(self, matrix=matrix, rest=self.rest + damping, inside=self.inside + damping)


@dataclass(frozen=True)
class KroneckerFactors:
    """Approximation S̄ ⊗ Ā + diagonal of an operator on matrices `[c, d]`.

    Attributes:
        inputs: Second moment Ā of the inputs, `[d, d]`.
        outputs: Mean curvature S̄ of the outputs, `[c, c]`.
        diagonal: Scalar that is added to the diagonal, a mean over the inputs.
        matrices: Map from flat vectors `[k, p]` to matrices `[k, c, d]`.
        flat: Inverse of `matrices`.
    """

    inputs: Float[Tensor, "d d"]
    outputs: Float[Tensor, "c c"]
    diagonal: float
    matrices: Callable[[Tensor], Tensor]
    flat: Callable[[Tensor], Tensor]

    def damped(self, damping: float) -> KroneckerFactors:
        """Returns the factors of A + δI."""
        return replace(self, diagonal=self.diagonal + damping)


@dataclass(frozen=True)
class Cost:
    """Cost of an operator, for solvers that choose by cost.

    Attributes:
        product: Floating-point operations of one product.
        core: Floating-point operations to build the core.
        size: Number of rows q of the core.
    """

    product: float
    core: float
    size: int


@dataclass(frozen=True)
class DenseForm:
    """A dense core that is built on demand, at less cost than p products.

    Attributes:
        build: Function that returns the core and builds it at the first call.
        is_built: Function that tells whether the core is built; products then use it and no longer the data.
        streamed: Product that always uses the data, even if the core is built.
    """

    build: Callable[[OnProgress], Core]
    is_built: Callable[[], bool]
    streamed: Callable[[Tensor], Tensor]

    def damped(self, damping: float) -> DenseForm:
        """Returns the dense form of A + δI."""
        return DenseForm(
            lambda on_progress: self.build(on_progress).damped(damping),
            self.is_built,
            lambda V: self.streamed(V) + damping * V,
        )


@dataclass(frozen=True)
class Structure:
    """Properties of an operator that solvers can use besides products; unknown ones are None.

    Attributes:
        cost: Floating-point operations of products and of the dense core.
        dense: Dense core, built on demand.
        kronecker: Function that returns a Kronecker approximation of the operator.
    """

    cost: Cost | None = None
    dense: DenseForm | None = None
    kronecker: Callable[[], KroneckerFactors] | None = None

    def damped(self, damping: float) -> Structure:
        """Returns the structure of A + δI."""
        dense, kronecker = self.dense, self.kronecker
        return Structure(
            self.cost,
            dense.damped(damping) if dense else None,
            (lambda: kronecker().damped(damping)) if kronecker else None,
        )
