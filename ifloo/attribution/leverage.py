"""Leverage of a sample in the curvature of a linear head, and removals predicted with it taken into account."""

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

LEVERAGE_BYTES = 256 << 20  # memory for the rows B of the samples processed together


@dataclass(frozen=True)
class SampleBlocks:
    """g training samples in the small space where each acts: ∇ℓ_i = B_iᵀ ρ_i and ∇²ℓ_i = B_iᵀ S_i B_i.

    Attributes:
        rows: B_i, `[g, s, p]`, with s = outputs x positions.
        second: S_i, `[g, s, s]`, second derivatives of the loss in the outputs.
        slopes: ρ_i, `[g, s]`, first derivatives of the loss in the outputs.
        n: Number of training samples.
    """

    rows: Float[Tensor, "g s p"]
    second: Float[Tensor, "g s s"]
    slopes: Float[Tensor, "g s"]
    n: int

    @classmethod
    def of(cls, head: LinearHead, ids: Sequence[int]) -> SampleBlocks:
        """Builds the blocks of these training ids, in their order.

        Raises:
            InputError: If an id is not in the training data.
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

    def quadratic_forms(self, prepared: Prepared) -> Float[Tensor, "g s s"]:
        """Computes A_i = B_i H⁻¹ B_iᵀ."""
        return prepared.quadratic_forms(self.rows)

    def leverages(self, forms: Float[Tensor, "g s s"]) -> Float[Tensor, " g"]:
        """Computes h_i = tr(S_i A_i) / n from the forms A_i; for one output this is ℓ''(η_i) x_iᵀH⁻¹x_i / n.

        The sum of h_i over all training samples is the effective dimension.
        """
        return (self.second * forms.mT).sum((1, 2)) / self.n

    def corrected(self, forms: Float[Tensor, "g s s"], directions: Float[Tensor, "m p"]) -> Float[Tensor, "m g"]:
        """Predicts ΔL_t, nats, for w_i → 0: (1/n) ∇L_tᵀ (H − ∇²ℓ_i/n)⁻¹ ∇ℓ_i by Woodbury's identity.

        The step of θ is exact for a quadratic J, and for any other J up to the change of the curvature along the step.
        The change of L_t along the step is taken to first order.

        Args:
            forms: Quadratic forms A_i, `[g, s, s]`.
            directions: H⁻¹∇L_t of the m tests, `[m, p]`.

        Returns:
            ΔL_t of each test and sample, `[m, g]`.

        Raises:
            SolveError: If J without one of the samples has no minimum.
        """
        remedy = "Raise the penalty or attribution.damping, or leave attribution.corrected out."
        inner = without_sample(self.second @ forms / self.n, self.slopes, "one of these samples", remedy)
        return torch.einsum("mp,gsp,gs->mg", directions, self.rows, inner) / self.n


def removal_effects(
    head: LinearHead, prepared: Prepared, directions: Float[Tensor, "m p"], ids: Sequence[int]
) -> tuple[Float[Tensor, "m g"], Float[Tensor, " g"]]:
    """Predicts ΔL_t, nats, for the removal of each id with weight zero, with its leverage taken into account.

    Source: Sherman & Morrison 1950 and Woodbury 1950; for one output the case deletion of Cook 1977.

    Args:
        head: Curvature of the head at θ̂.
        prepared: Solver of H + δI, ready for right-hand sides.
        directions: (H + δI)⁻¹∇L_t of the m tests.
        ids: Training ids, g of them.

    Returns:
        ΔL_t of each test and id, `[m, g]`, and the leverages of the ids, `[g]`, dimensionless.

    Raises:
        InputError: If an id is not in the training data.
        SolveError: If a solve failed or missed its tolerance, or J without one of the samples has no minimum.
    """
    effects, leverages = [], []
    positions = head.chunks[0].inputs.shape[1]
    size = max(1, LEVERAGE_BYTES // (positions * head.basis.shape[1] * head.size * head.dtype.itemsize))
    for start in range(0, len(ids), size):
        blocks = SampleBlocks.of(head, ids[start : start + size])
        forms = blocks.quadratic_forms(prepared)
        effects.append(blocks.corrected(forms, directions))
        leverages.append(blocks.leverages(forms))
    return torch.cat(effects, 1), torch.cat(leverages)


def _block(head: LinearHead, chunk: int, row: int) -> tuple[Tensor, Tensor, Tensor]:
    """Builds B, S and ρ of one sample; B, in core coordinates, is basis vectors ⊗ inputs of its positions."""
    x, S = head.chunks[chunk].inputs[row], head.seconds[chunk][row]  # [t, d], [t, c, c]
    t, r = len(x), head.basis.shape[1]
    eye = torch.eye(r, dtype=x.dtype, device=x.device)
    B = torch.einsum("rq,td->trqd", eye, x).reshape(t * r, -1)
    second = torch.block_diag(*(head.basis.T @ S @ head.basis))
    return B, second, (head.chunks[chunk].residuals[row] @ head.basis).reshape(-1)
