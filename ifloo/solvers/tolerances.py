"""Default tolerances of the relative residual of each solver, for each precision.

A residual |b - A x| / |b| is itself computed with an error of up to eps · κ(A), where κ is the condition number and
eps is 1e-16 in float64 and 6e-8 in float32. Reaching a tolerance τ is therefore certain only if κ is below τ / eps,
although it often succeeds far beyond. In float64 all solvers have 1e-10, which suits κ up to 1e6 and is far below the
first-order error of any score. In float32 the tolerances differ, since the solvers lose digits in different operations.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

# CG restarts from the recomputed residual, which reduces it to 16 roundings of b if a preconditioner has made the
# operator well conditioned. For worse operators the error states the residual that was reached.
CG_RTOL = {torch.float64: 1e-10, torch.float32: 1e-6}

# Refinement with float64 residuals removes the error κ · eps of a float32 factor, but the residual of the solution is
# taken by float32 products with the data, whose own rounding is up to κ · eps: κ up to 1,700.
CHOLESKY_RTOL = {torch.float64: 1e-10, torch.float32: 1e-4}

# Of CG where the solver is chosen by cost; Cholesky keeps its own tolerance, since its solution is more accurate than
# the residual shows.
AUTO_RTOL = {torch.float64: 1e-10, torch.float32: 1e-5}


def default_rtol(rtol: Mapping[torch.dtype, float], dtype: torch.dtype) -> float:
    """Returns the tolerance for a precision; lower precisions than float32 have the tolerance of float32."""
    return rtol.get(dtype, rtol[torch.float32])
