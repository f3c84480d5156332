"""Laws that every operator and every solver must obey."""

import pytest
import torch
from torch import Tensor

from ifloo.curvature import LinearOperator, dense
from ifloo.errors import InputError
from ifloo.progress import no_progress
from ifloo.solvers import Status
from tests.cases import OperatorCase, SolverCase, matrix_with

# Sums of up to 150 products of numbers near 1, in another order: 1e-12 is four digits above float64 rounding.
ROUNDING = {"rtol": 1e-12, "atol": 1e-12}


def _vectors(operator: LinearOperator, k: int = 3) -> Tensor:
    return torch.randn(k, operator.size, generator=torch.Generator().manual_seed(6), dtype=operator.dtype)


def linear(case: OperatorCase) -> None:
    A = case.build(7)
    u, v, w = _vectors(A)
    left = A.matmat((2.5 * u - 0.5 * v + w)[None])[0]
    right = torch.tensor([2.5, -0.5, 1.0], dtype=A.dtype) @ A.matmat(torch.stack([u, v, w]))
    torch.testing.assert_close(left, right, **ROUNDING)


def symmetric(case: OperatorCase) -> None:
    A = case.build(7)
    V = _vectors(A)
    G = V @ A.matmat(V).T
    torch.testing.assert_close(G, G.T, **ROUNDING)


def equals_its_dense(case: OperatorCase) -> None:
    torch.testing.assert_close(dense(case.build(7), block=5), case.truth(), **ROUNDING)


def batch_size_free(case: OperatorCase) -> None:
    V = _vectors(case.build(1))
    truth = V @ case.truth()
    for size in (1, 7, 1000):
        torch.testing.assert_close(case.build(size).matmat(V), truth, **ROUNDING)


def repeatable(case: OperatorCase) -> None:
    A = case.build(7)
    V = _vectors(A)
    first = A.matmat(V)
    assert torch.equal(A.matmat(V), first)  # the same sums in the same order: to the bit
    torch.testing.assert_close(
        A.matmat(V[1:2]), first[1:2], **ROUNDING
    )  # one row may take another code path than three


def takes_one_vector_or_rows(case: OperatorCase) -> None:
    A = case.build(7)
    V = _vectors(A)
    assert torch.equal(A @ V, A.matmat(V))
    assert torch.equal(A @ V[0], A.matmat(V[:1])[0])
    for wrong in (V.T, V[:, 1:], V.unsqueeze(0), V.sum()):
        with pytest.raises(InputError):
            A @ wrong


def has_the_structure_it_states(case: OperatorCase) -> None:
    A = case.build(7)
    V, structure = _vectors(A), A.structure
    truth = V @ case.truth()
    assert structure.cost is not None
    if structure.dense is None:
        assert structure.kronecker is None
        return
    torch.testing.assert_close(structure.dense.streamed(V), truth, **ROUNDING)
    torch.testing.assert_close(structure.dense.build(no_progress).product(V), truth, **ROUNDING)
    assert structure.dense.is_built()
    factors = structure.kronecker()
    assert torch.equal(factors.flat(factors.matrices(V)), V)


OPERATOR_LAWS = [
    linear,
    symmetric,
    equals_its_dense,
    batch_size_free,
    repeatable,
    takes_one_vector_or_rows,
    has_the_structure_it_states,
]

_MATRIX = matrix_with(torch.linspace(0.5, 4.0, 12, dtype=torch.float64))
_B = torch.randn(3, 12, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def solves(case: SolverCase) -> None:
    solution = case.solver.prepare(case.operator(_MATRIX)).solve(_B).require()
    # ‖x − A⁻¹b‖ <= ‖r‖ / λ_min, here twice the residual
    truth = torch.linalg.solve(_MATRIX, _B.T).T
    assert ((solution.value - truth).norm(dim=1) <= (2 * case.residual + 1e-14) * _B.norm(dim=1)).all()


def reports_its_true_residual(case: SolverCase) -> None:
    solution = case.solver.prepare(case.operator(_MATRIX)).solve(_B)
    truth = (_B - solution.value @ _MATRIX).norm(dim=1) / _B.norm(dim=1)
    # b − Ax is known to 12 roundings of |A| |x| / |b| <= 8 only, so that of a sharp solve the size alone is known.
    torch.testing.assert_close(solution.residual, truth, rtol=1e-12, atol=1e-14)
    assert (solution.residual <= case.residual).all()


def keeps_rows_apart(case: SolverCase) -> None:
    prepared = case.solver.prepare(case.operator(_MATRIX))
    together = prepared.solve(_B * torch.tensor([[1.0], [1e6], [1e-6]], dtype=_B.dtype))
    for i, factor in enumerate((1.0, 1e6, 1e-6)):
        alone = prepared.solve(_B[i : i + 1] * factor)
        assert torch.equal(alone.steps, together.steps[i : i + 1])
        torch.testing.assert_close(alone.value[0], together.value[i], rtol=1e-9, atol=1e-11 * factor)


def answers_zero_with_zero(case: SolverCase) -> None:
    B = torch.stack([torch.zeros(12, dtype=torch.float64), _B[0]])
    solution = case.solver.prepare(case.operator(_MATRIX)).solve(B).require()
    assert (solution.value[0] == 0).all()
    assert solution.residual[0] == 0
    assert solution.residual[1] <= case.residual


def scales(case: SolverCase) -> None:
    prepared = case.solver.prepare(case.operator(_MATRIX))
    once, thrice = prepared.solve(_B), prepared.solve(-4.0 * _B)  # a power of two: every rounding is the same
    torch.testing.assert_close(thrice.value, -4.0 * once.value, rtol=1e-13, atol=1e-14)
    assert torch.equal(once.steps, thrice.steps)


def reports_what_it_used(case: SolverCase) -> None:
    solution = case.solver.prepare(case.operator(_MATRIX)).solve(_B)
    assert set(solution.status) == {Status.FIXED_STEPS if case.stochastic else Status.CONVERGED}
    assert (solution.steps > 0).all()
    assert solution.advice == ("", "", "")
    assert (solution.standard_error is not None) == case.stochastic


SOLVER_LAWS = [
    solves,
    reports_its_true_residual,
    keeps_rows_apart,
    answers_zero_with_zero,
    scales,
    reports_what_it_used,
]
