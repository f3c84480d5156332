"""The smallest eigenvalue of a curvature that is not positive definite, and a damping that works."""

import re

import pytest
import torch

from ifloo.curvature import Damped, Definite, Hessian
from ifloo.objective.functional import differentiable_kernels
from ifloo.solvers import CG, Cholesky, Nystrom, SolveError
from ifloo.solvers.indefinite import lowest_eigenvalue, sufficient_damping
from tests.cases import Matrix, matrix_with
from tests.problems import Attention

SPECTRA = {
    "one below zero": torch.cat([torch.tensor([-0.2]), torch.linspace(0.01, 5, 399)]),
    "many below zero": torch.linspace(-1, 30, 400),
    "clustered": torch.cat([torch.full((20,), -3e-3), torch.logspace(-6, 2, 380)]),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_the_smallest_eigenvalue_lies_within_the_error(spectrum, dtype):
    values = SPECTRA[spectrum].double()
    found = lowest_eigenvalue(Matrix(matrix_with(values).to(dtype)))
    lowest = float(values.min())
    rounding = torch.finfo(dtype).eps * float(values.max()) * 20
    assert found.value >= lowest - rounding
    assert abs(found.value - lowest) <= found.error + rounding
    assert found.largest == pytest.approx(float(values.max()), rel=0.1)


def test_a_small_operator_is_solved_whole():
    found = lowest_eigenvalue(Matrix(torch.diag(torch.tensor([2.0, 1.0, -6.0], dtype=torch.float64))))
    assert found.value == pytest.approx(-6, rel=1e-12)
    assert found.error <= 1e-9


SOLVERS = {"cholesky": Cholesky(), "cg": CG(), "nystrom": CG(preconditioner=Nystrom(rank=30))}


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("damping", [0.0, 1e-3])
def test_the_damping_named_works_and_is_not_far_too_large(solver, spectrum, damping):
    values = SPECTRA[spectrum].double()
    matrix = Matrix(matrix_with(values))
    B = torch.ones(1, len(values), dtype=torch.float64)
    with pytest.raises(SolveError) as caught:
        SOLVERS[solver].prepare(Damped(matrix, damping) if damping else matrix).solve(B).require()
    named = re.search(r"Damping (\S+?)( in place of 0\.001)? would do \(damping=(\S+?)\)\.", str(caught.value))
    assert named
    assert named[1] == named[3]
    assert bool(named[2]) == bool(damping)
    resolved = 1e-3 * float(values.max())  # 40 steps tell eigenvalues apart on the scale of the whole spectrum
    assert -values.min() < float(named[1]) < -3 * values.min() + 2 * damping + resolved
    SOLVERS[solver].prepare(Damped(matrix, float(named[1]))).solve(B).require()


def test_the_damping_named_for_a_network_works():
    problem = Attention.make()
    B = torch.ones(1, len(problem.theta), dtype=torch.float64)
    with differentiable_kernels():
        hessian = Hessian(problem.objective(), problem.theta)
        with pytest.raises(SolveError, match="not positive definite: its smallest eigenvalue is about -") as caught:
            CG(preconditioner=Nystrom(rank=20)).prepare(hessian)
        damping = float(re.search(r"damping=(\S+?)\)", str(caught.value))[1])
        CG(preconditioner=Nystrom(rank=20)).prepare(Damped(hessian, damping)).solve(B).require()


def test_a_gauss_newton_matrix_is_not_advised_to_be_one():
    matrix = matrix_with(torch.tensor([-1e-9, 1.0, 2.0], dtype=torch.float64))
    with pytest.raises(SolveError) as caught:
        Cholesky().prepare(Matrix(matrix, Definite.SEMI))
    assert "GaussNewton" not in str(caught.value)
    assert "or use float64" in str(caught.value).lower()


def test_rounding_alone_asks_for_a_damping_above_rounding():
    A = Matrix(torch.diag(torch.tensor([0.0, 1.0, 4.0], dtype=torch.float64)), Definite.SEMI)
    damping = sufficient_damping(A, lowest_eigenvalue(A))
    assert 4 * torch.finfo(torch.float64).eps < damping < 1e-12
