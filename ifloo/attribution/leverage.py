"""What one sample weighs in the curvature of a linear head: its leverage, and its removal with that counted in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ifloo.attribution.downdate import without_sample
from ifloo.curvature import LinearHead
from ifloo.objective.ids import positions_of
from ifloo.solvers import Prepared

LEVERAGE_BYTES = 256 << 20  # bytes of the rows B of samples taken together


@dataclass(frozen=True)
class SampleBlocks:
    """g training samples in the small space where each acts: ∇ℓ_i = B_iᵀ ρ_i and ∇²ℓ_i = B_iᵀ S_i B_i.

    Attributes:
        rows: B_i, `[g, s, p]`, s = outputs x positions.
        second: S_i, `[g, s, s]`.
        slopes: ρ_i, `[g, s]`.
        n: training samples in all.
    """

    rows: Float[Tensor, "g s p"]
    second: Float[Tensor, "g s s"]
    slopes: Float[Tensor, "g s"]
    n: int

    @classmethod
    def of(cls, head: LinearHead, ids: Sequence[int]) -> SampleBlocks:
        """The blocks of these training ids, in their order.

        Raises:
            InputError: an id that is none of the training data's.
        """
        positions = positions_of(head.objective.data.ids, ids)
        ends = torch.tensor([len(c.ids) for c in head.chunks]).cumsum(0)
        parts = []
        for position in positions.tolist():
            k = int(torch.searchsorted(ends, position, right=True))
            parts.append(_block(head, k, position - (int(ends[k - 1]) if k else 0)))
        rows, second, slopes = (torch.stack(x) for x in zip(*parts, strict=True))
        flat = head.expand(rows.flatten(0, 1)).view(*rows.shape[:2], -1)
        return cls(flat, second, slopes, head.n)

    def sandwiches(self, prepared: Prepared) -> Float[Tensor, "g s s"]:
        """A_i = B_i H⁻¹ B_iᵀ."""
        return prepared.quadratic_forms(self.rows)

    def leverages(self, sandwiches: Float[Tensor, "g s s"]) -> Float[Tensor, " g"]:
        """h_i = tr(S_i A_i) / n; for one output ℓ''(η_i) x_iᵀH⁻¹x_i / n. Their sum is the effective dimension."""
        return (self.second * sandwiches.mT).sum((1, 2)) / self.n

    def corrected(self, sandwiches: Float[Tensor, "g s s"], directions: Float[Tensor, "m p"]) -> Float[Tensor, "m g"]:
        """Predicted ΔL_t, nats, when w_i → 0: (1/n) ∇L_tᵀ (H − ∇²ℓ_i/n)⁻¹ ∇ℓ_i by Woodbury, `directions` = H⁻¹∇L_t.

        The step of θ is exact for a quadratic J, and for any J up to the change of the curvature on the way; the change
        of L_t along it is of first order.

        Raises:
            SolveError: without one of the samples there is no minimum.
        """
        remedy = "Raise the penalty or attribution.damping, or leave attribution.corrected out."
        moved = without_sample(self.second @ sandwiches / self.n, self.slopes, "one of these samples", remedy)
        return torch.einsum("mp,gsp,gs->mg", directions, self.rows, moved) / self.n


def removal_effects(
    head: LinearHead, prepared: Prepared, directions: Float[Tensor, "m p"], ids: Sequence[int]
) -> tuple[Float[Tensor, "m g"], Float[Tensor, " g"]]:
    """Corrected ΔL_t of removing each id with weight zero, nats, and the ids' leverages, dimensionless.

    Source: Sherman & Morrison 1950 and Woodbury 1950; for one output the case deletion of Cook 1977.

    Args:
        head: curvature of the head at θ̂.
        prepared: a solver of H + δI, ready for right-hand sides.
        directions: (H + δI)⁻¹∇L_t of the m tests.
        ids: g training ids.

    Raises:
        InputError: an id that is none of the training data's.
        SolveError: a solve that cannot be used.
    """
    effects, leverages = [], []
    positions = head.chunks[0].inputs.shape[1]
    size = max(1, LEVERAGE_BYTES // (positions * head.basis.shape[1] * head.size * head.dtype.itemsize))
    for start in range(0, len(ids), size):
        blocks = SampleBlocks.of(head, ids[start : start + size])
        sandwiches = blocks.sandwiches(prepared)
        effects.append(blocks.corrected(sandwiches, directions))
        leverages.append(blocks.leverages(sandwiches))
    return torch.cat(effects, 1), torch.cat(leverages)


def _block(head: LinearHead, chunk: int, row: int) -> tuple[Tensor, Tensor, Tensor]:
    """B (in the coordinates of the core), S and ρ of one sample: basis vectors ⊗ inputs of its positions."""
    x, S = head.chunks[chunk].inputs[row], head.seconds[chunk][row]  # [t, d], [t, c, c]
    t, r = len(x), head.basis.shape[1]
    eye = torch.eye(r, dtype=x.dtype, device=x.device)
    B = torch.einsum("rq,td->trqd", eye, x).reshape(t * r, -1)
    second = torch.block_diag(*(head.basis.T @ S @ head.basis))
    return B, second, (head.chunks[chunk].residuals[row] @ head.basis).reshape(-1)
