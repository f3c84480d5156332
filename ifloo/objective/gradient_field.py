"""Products with the Hessian against the derivative of the training gradient, which they are meant to be.

Double backward differentiates the operations that the first backward pass has recorded. With a backward pass of the
user's own (gradient reversal, a straight-through estimator, a hook) or a stopped gradient that is not the derivative of
the gradient field θ -> ∇J(θ) which training follows; that field may then have no symmetric derivative at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ifloo.objective.slopes import random_unit, unit_along

Field = Callable[[Tensor], Tensor]  # θ [p] -> gradient [p]
Products = Callable[[Tensor], Tensor]  # [k, p] -> [k, p], at θ

# Step lengths relative to θ, from the finest: a kink (ReLU, max-pool, |θ|) is unlikely to lie within a short step, and
# a loss that is computed in fewer bits than θ needs a long one.
STEPS = (1e-9, 1e-7, 1e-5, 1e-4, 1e-3)
RESOLVED = 100.0  # a step is as many roundings of θ at least
EQUAL = 0.01  # relative difference below which the two are the same
CONSISTENT = 0.1  # share of their distance from the product by which differences of two steps may differ
SYMMETRIC = 1e-3  # relative asymmetry from which the sentence names a lack of symmetry


@dataclass(frozen=True)
class FieldComparison:
    """Products with the Hessian beside central differences of the training gradient, along one direction.

    Attributes:
        difference: Norm of the difference, relative to the larger of the two.
        asymmetry: |uᵀHv − vᵀHu| relative to ‖Hv‖, with u along Hv.
    """

    difference: float
    asymmetry: float

    @property
    def equal(self) -> bool:
        """Whether products are the derivative of the training gradient."""
        return max(self.difference, self.asymmetry) <= EQUAL

    def text(self, own: Sequence[str]) -> str:
        """Returns the sentence for logs and files.

        Args:
            own: Parts of the loss with a backward pass of their own, as noun phrases.
        """
        cause = (
            f"{', '.join(own)}: a backward pass of its own"
            if own
            else "a part of the loss that passes no gradient, or a backward pass that is not fully differentiable"
        )
        kind = " and are not symmetric" if self.asymmetry > SYMMETRIC else ""
        return (
            f"products with the Hessian (double backward) differ by {100 * self.difference:.2g} % from the derivative "
            f"of the gradient that training followed{kind} ({cause}): scores through a curvature are not the response "
            "of the trained weights, and may be off by more than that; attribute the layers after it alone "
            "(attribution.parameters), or take a method of first derivatives (ifloo.attribution.GradientDot)"
        )


def compare_with_field(field: Field, products: Products, theta: Float[Tensor, " p"]) -> FieldComparison | None:
    """Compares products with the Hessian with central differences of the gradient.

    Args:
        field: Gradient as training takes it, at any θ.
        products: Products with the Hessian at `theta`.
        theta: Parameters, `[p]`.

    Returns:
        The comparison; None if no step length resolves the derivative: it is then below rounding, or a kink lies at θ.
    """
    v = unit_along(random_unit(theta, 0) + unit_along(field(theta)))
    (product,) = products(v[None])
    asymmetry = _asymmetry(products, v, product)
    found: list[Tensor] = []
    scale = max(1.0, float(theta.norm()))
    for step in STEPS:
        if step < RESOLVED * torch.finfo(theta.dtype).eps:
            continue
        h = step * scale
        found.append((field(theta + h * v) - field(theta - h * v)) / (2 * h))
        if (difference := _relative(found[-1], product)) <= EQUAL:
            return FieldComparison(difference, asymmetry)
    closest = min(range(1, len(found)), key=lambda k: float((found[k] - found[k - 1]).norm()), default=0)
    if closest and (found[closest] - found[closest - 1]).norm() <= CONSISTENT * (found[closest] - product).norm():
        return FieldComparison(_relative(found[closest], product), asymmetry)
    return None


def _asymmetry(products: Products, v: Tensor, product: Tensor) -> float:
    length = float(product.norm())
    if not length > 0:
        return 0.0
    return abs(length - float(v @ products((product / length)[None])[0])) / length


def _relative(a: Tensor, b: Tensor) -> float:
    larger = max(float(a.norm()), float(b.norm()))
    return float((a - b).norm()) / larger if larger else 0.0
