"""The influence engine: certified scores of all training samples for a batch of queries."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ifloo.attribution.products import QUERY_BLOCK, ForwardProducts, Products, rounding_of_sum
from ifloo.attribution.scores import Certificate, Scores
from ifloo.curvature import Damped, LinearOperator
from ifloo.objective.batches import Batch, batch_size, slice_batch
from ifloo.objective.functional import scoring
from ifloo.objective.ids import query_ids
from ifloo.objective.objective import Objective
from ifloo.progress import OnProgress, no_progress
from ifloo.solvers.base import Prepared, Solution, Solver, relative_residual
from ifloo.solvers.progress import recording


@dataclass(frozen=True)
class Directions:
    """H⁻¹∇L_t of each query, with the certificate of the solve.

    Attributes:
        value: H⁻¹∇L_t, `[m, p]`.
        query_ids: Ids of the queries, `[m]`.
        certificate: Certificate of the solves.
    """

    value: Float[Tensor, "m p"]
    query_ids: Int[Tensor, " m"]
    certificate: Certificate


@dataclass(frozen=True)
class InfluenceEngine:
    r"""Influence of every training sample on the loss of each query: its derivative in the sample's weight.

        J(θ; w) = (1/n) Σ_i w_i ℓ_i(θ) + R(θ),    s[t, i] = ∂L_t(θ̂)/∂w_i = −(1/n) ∇L_t · H⁻¹ ∇ℓ_i,    H = ∇²J(θ̂; 1)

    Note: n stays fixed here. Dropping a row divides by n − 1 and so rescales R too (`predicted_change`).

    Source: Koh & Liang 2017, arXiv:1703.04730, eq. (2).

    Attributes:
        objective: J(θ; 1) over all training samples.
        theta: θ̂, `[p]`.
        curvature: H, or `Damped(H, δ)`, or another operator in its place.
        solver: Solver of (H + δI) x = ∇L_t.
        strong_convexity: Lower bound on the eigenvalues of the undamped curvature, for error bounds; None if unknown.
        by: Products with the training gradients; None forms them by forward-mode derivatives.
        tick: Callback that receives the progress of the solver's preparation.
    """

    objective: Objective
    theta: Float[Tensor, " p"]
    curvature: LinearOperator
    solver: Solver
    strong_convexity: float | None = None
    by: Products | None = None
    tick: OnProgress = no_progress

    def scores(self, queries: Batch) -> Scores:
        """Computes the scores of all n training samples for a batch of m queries.

        Raises:
            SolveError: If a query's solve failed, missed its tolerance or diverged.
        """
        directions = self.directions(queries)
        value = torch.cat([self.of(directions, chunk) for chunk in self.products.chunks()], dim=1)
        factors = self.objective.factors
        return Scores(value, self.products.ids, directions.query_ids, directions.certificate, factors)

    def directions(self, queries: Batch) -> Directions:
        """Computes H⁻¹∇L_t of each query.

        Raises:
            SolveError: If a query's solve failed, missed its tolerance or diverged.
        """
        queries = self.objective.losses.in_form(queries)
        m = batch_size(queries)
        size = max(QUERY_BLOCK, self.prepared.efficient_rows)
        starts = range(0, m, size)
        blocks = [slice_batch(queries, slice(i, i + size)) for i in starts]
        with scoring(self.objective.losses.module):
            gradients = [self.products.query_gradients(b) for b in blocks]
            solved = [self._solved(g, i, m) for i, g in zip(starts, gradients, strict=True)]
        return Directions(
            torch.cat([value for value, _ in solved]),
            query_ids(queries),
            Certificate.joined([certificate for _, certificate in solved]),
        )

    def of(self, directions: Directions, samples: Batch) -> Float[Tensor, "m b"]:
        """Computes s[t, i] of some samples: those of a chunk of `products`, or of any batch."""
        return self.products.of(samples, directions.value) / -self.objective.n

    @cached_property
    def products(self) -> Products:
        """Products ∇ℓ_i · v of the training samples i with directions v."""
        return self.by or ForwardProducts(self.objective, self.theta)

    @cached_property
    def prepared(self) -> Prepared:
        """Solver prepared for the curvature; all queries share this preparation."""
        with scoring(self.objective.losses.module):
            return self.solver.prepare(self.curvature, self.tick)

    @property
    def rounding(self) -> float:
        """Relative rounding of gradients and of their products in float32; 0 in float64, far below any residual."""
        return 0.0 if self.theta.dtype is torch.float64 else rounding_of_sum(self.curvature.size, self.theta.dtype)

    @cached_property
    def largest_gradient(self) -> float:
        """Largest ‖∇ℓ_i(θ̂)‖ over the training samples."""
        return self.products.largest_gradient()

    def _solved(self, gradients: Float[Tensor, "b p"], first: int, m: int) -> tuple[Float[Tensor, "b p"], Certificate]:
        """Solves for one block of queries; returns their directions and certificate."""
        with recording(self.prepared) as curve:
            solution = self.prepared.solve(gradients).require(first, m)
        return solution.value, self._certificate(solution, gradients, curve.ended(solution))

    def _certificate(self, solution: Solution, gradients: Float[Tensor, "m p"], curve: Tensor) -> Certificate:
        damping = self.curvature.damping if isinstance(self.curvature, Damped) else 0.0
        undamped = solution.residual
        if isinstance(self.curvature, Damped) and damping > 0:
            undamped = relative_residual(self.curvature.base, solution.value, gradients)
        bound = None
        if self.strong_convexity is not None and self.strong_convexity + damping > 0:
            rounding = self.rounding
            absolute = (solution.residual + rounding) * gradients.norm(dim=1)
            bound = self.largest_gradient * absolute / (self.objective.n * (self.strong_convexity + damping))
            if rounding := max(self.products.rounding, rounding):
                lengths = solution.value.norm(dim=1)
                bound = bound + rounding * self.largest_gradient * lengths / self.objective.n
        repeat, length = solution.standard_error, solution.value.norm(dim=1)
        return Certificate(
            solution.residual,
            undamped,
            bound,
            None if repeat is None else repeat.norm(dim=1) / length.clamp_min(torch.finfo(length.dtype).tiny),
            solution.steps,
            solution.status,
            (curve,) * len(solution.status),
            damping,
        )
