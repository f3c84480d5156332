"""Default tolerances: those that the solvers' own pages state."""

import pytest
import torch

from ifloo.solvers import CG, Auto, Cholesky
from ifloo.solvers.tolerances import AUTO_RTOL, CG_RTOL, CHOLESKY_RTOL, default_rtol


@pytest.mark.parametrize(
    ("solver", "rtol"), [(CG, CG_RTOL), (Cholesky, CHOLESKY_RTOL), (Auto, AUTO_RTOL)], ids=["cg", "cholesky", "auto"]
)
def test_a_solver_documents_its_default(solver, rtol):
    stated = f"{default_rtol(rtol, torch.float64):.0e} in float64, {default_rtol(rtol, torch.float32):.0e} in float32"
    assert stated.replace("e-0", "e-") in " ".join(solver.__doc__.split())


def test_half_precision_is_asked_for_no_more_than_single():
    assert default_rtol(CG_RTOL, torch.bfloat16) == default_rtol(CG_RTOL, torch.float32)
