"""Solves with the curvature minus the share of one sample, in the small space where that sample acts."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ifloo.solvers import SolveError

LEVERAGE_MARGIN = 1e-6  # smallest distance of a leverage from 1: division by a smaller one leaves too few digits


def without_sample(
    share: Float[Tensor, "g s s"], slopes: Float[Tensor, "g s"], samples: str, remedy: str
) -> Float[Tensor, "g s"]:
    """Solves (I − S_i A_i/n) x_i = ρ_i, the small system in Woodbury's identity, for each of g samples.

    A_i = B_i H⁻¹ B_iᵀ; `SampleBlocks` defines B_i, S_i and ρ_i.

    Source: Sherman & Morrison 1950 and Woodbury 1950.

    Args:
        share: Share S_i A_i/n of each sample in the curvature.
        slopes: Derivatives ρ_i of each sample's loss in the outputs.
        samples: Name of the samples in the error message: "one of the samples".
        remedy: Next step in the error message.

    Returns:
        The solutions x_i, one row per sample.

    Raises:
        SolveError: If without one of the samples the curvature is singular or indefinite, so that J has no minimum.
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
