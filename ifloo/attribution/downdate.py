"""Solves with the curvature less that of one sample, in the small space where the sample acts."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ifloo.solvers import SolveError

LEVERAGE_MARGIN = 1e-6  # least distance of a leverage from 1: dividing by a smaller one leaves too few digits


def without_sample(
    share: Float[Tensor, "g s s"], slopes: Float[Tensor, "g s"], samples: str, remedy: str
) -> Float[Tensor, "g s"]:
    """(I − S_i A_i/n)⁻¹ ρ_i of each of g samples, with A_i = B_i H⁻¹ B_iᵀ: what Woodbury's identity asks for.

    Source: Sherman & Morrison 1950 and Woodbury 1950.

    Args:
        share: S_i A_i/n, the share of each sample in the curvature.
        slopes: ρ_i.
        samples: which samples these are, for the error: "one of the samples".
        remedy: the next step, for the error.

    Raises:
        SolveError: without one of the samples the curvature is singular or indefinite, so that there is no minimum.
    """
    largest = float(torch.linalg.eigvals(share).real.max())
    if not largest < 1 - LEVERAGE_MARGIN:
        raise SolveError(
            f"Without {samples} the curvature has no minimum left: it carries {largest:.3g} of it in some direction.\n"
            f"  {remedy}"
        )
    identity = torch.eye(share.shape[1], dtype=share.dtype, device=share.device)
    inner: Tensor = torch.linalg.solve(identity - share, slopes)
    return inner
