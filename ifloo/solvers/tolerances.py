"""Relative residuals that solvers ask for by default, for each precision.

A residual |b - A x| / |b| is itself computed with an error of up to eps · κ(A), where κ is the condition number and
eps 1e-16 in 64 bits, 6e-8 in 32. A tolerance τ is therefore certain to be met only where κ is below τ / eps; it may be
met far beyond. In 64 bits all solvers ask for 1e-10, which serves κ up to 1e6 and is far below the error of first
order in any score. In 32 bits they differ, since they lose their digits at different places.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

# CG restarts from the residual as recomputed, which brings it to within 16 roundings of b on operators that a
# preconditioner has made well conditioned. For worse ones the error names the residual that was reached.
CG_RTOL = {torch.float64: 1e-10, torch.float32: 1e-6}

# One step of refinement, with a residual of 32 bits, does not undo the κ · eps of the factor: κ up to 1,700.
CHOLESKY_RTOL = {torch.float64: 1e-10, torch.float32: 1e-4}

# Between the two, since a solver picked by its cost must give scores of one accuracy, whichever it is.
AUTO_RTOL = {torch.float64: 1e-10, torch.float32: 1e-5}


def default_rtol(rtol: Mapping[torch.dtype, float], dtype: torch.dtype) -> float:
    """Gives the tolerance for a precision; those below 32 bits are asked for no more than 32 bits are."""
    return rtol.get(dtype, rtol[torch.float32])
