"""What solvers say when they must not be believed: whole messages, with values, and advice that works."""

import re

import pytest
import torch

from ifloo.curvature import Damped, Definite, Hessian
from ifloo.errors import InputError
from ifloo.solvers import CG, Cholesky, LiSSA, Nystrom, Solution, SolveError, Status
from tests.cases import Matrix, Products, matrix_with
from tests.problems import Logistic

ONES = torch.ones(1, 3, dtype=torch.float64)


def _diagonal(*values: float, dtype: torch.dtype = torch.float64) -> Matrix:
    return Matrix(torch.diag(torch.tensor(values, dtype=dtype)))


def _refusal(solver, operator, B=ONES) -> str:
    with pytest.raises(SolveError) as caught:
        solver.prepare(operator).solve(B).require()
    return str(caught.value)


def test_cg_meets_negative_curvature():
    # first direction (1, 1, 1): Rayleigh quotient (2 + 1 − 6) / 3
    assert _refusal(CG(), _diagonal(2.0, 1.0, -6.0)) == (
        "query 1 of 1: CG met non-positive curvature (-1.0e+00) at step 1; the smallest eigenvalue is about "
        "-6.0e+00.\n"
        "  The damped curvature is indefinite at this checkpoint: is it trained to a minimum?\n"
        "  Damping 10 would do (damping=10). Or train to a minimum, or use curvature GaussNewton with "
        "damping."
    )


@pytest.mark.parametrize("declared", [Definite.SEMI, Definite.POSITIVE])
def test_cg_does_not_advise_gauss_newton_where_the_operator_is_declared_positive(declared):
    A = Matrix(torch.diag(torch.tensor([2.0, 1.0, -6.0], dtype=torch.float64)), declared)
    assert _refusal(CG(), A) == (
        "query 1 of 1: CG met non-positive curvature (-1.0e+00) at step 1; the smallest eigenvalue is about "
        "-6.0e+00.\n"
        "  This is rounding along a direction without curvature, or loss or penalty is not convex.\n"
        "  Damping 10 would do (damping=10). Or use float64: it is declared "
        f"{declared.value}, as it is where loss and penalty are convex."
    )


def test_cg_runs_out_of_steps():
    message = _refusal(CG(rtol=1e-8, max_steps=1), _diagonal(1.0, 2.0, 6.0))
    # one step from 0: α = 3/9, r = 1 − α (1, 2, 6), ‖r‖ / ‖b‖ = √(14/9 · 1/3 · ...) = 0.72
    residual = float((1 - torch.tensor([1.0, 2.0, 6.0]) / 3).norm() / 3**0.5)
    assert message == (
        f"query 1 of 1: CG reached a relative residual of {residual:.1e} in 1 steps, above the tolerance of 1.0e-08; "
        "raise max_steps (now 1), add damping, or give a preconditioner."
    )


def test_cg_meets_the_limit_of_32_bits():
    hard = matrix_with(torch.logspace(-1, 1, 40, dtype=torch.float64)).float()
    B = torch.randn(1, 40, generator=torch.Generator().manual_seed(0))
    message = _refusal(CG(rtol=1e-9), Matrix(hard), B)
    assert re.fullmatch(
        r"query 1 of 1: CG reached a relative residual of \d\.\de-0\d in \d+ steps, above the tolerance of 1\.0e-09; "
        r"torch\.float32 cannot reach it here: use float64, a larger rtol, or damping\.",
        message,
    )


@pytest.mark.parametrize("solver", [CG(), Cholesky(), LiSSA(depth=60, scale=5.0)], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_right_hand_side_that_is_not_finite_spoils_no_other(solver, value):
    B = torch.ones(3, 3, dtype=torch.float64)
    B[1, 2] = value
    solution = solver.prepare(_diagonal(1.0, 2.0, 3.0)).solve(B)
    assert solution.status[1] is Status.NOT_FINITE
    assert not torch.isfinite(solution.residual[1])
    assert (solution.residual[[0, 2]] < 1e-5).all()  # LiSSA: 0.8^60
    with pytest.raises(SolveError) as caught:
        solution.require()
    assert str(caught.value) == (
        "query 2 of 3: the right-hand side holds NaN or infinity; the test loss has no finite gradient here."
    )


def test_cg_meets_a_curvature_that_is_not_finite():
    assert _refusal(CG(), _diagonal(1.0, float("nan"), 2.0)) == (
        "query 1 of 1: the product with the curvature is not finite at step 1."
    )


def test_cholesky_refuses_what_does_not_fit():
    class Large(Matrix):
        size = 60_000

        def __init__(self):
            self.dtype, self.device = torch.float64, torch.device("cpu")

    with pytest.raises(InputError) as caught:
        Cholesky().prepare(Large())
    assert str(caught.value) == (
        "Cholesky of p = 60,000 parameters needs 53.6 GiB (matrix and factor, torch.float64); max_bytes allows 4.0 "
        "GiB.\n"
        "  Use solver CG, which needs products only, or raise max_bytes if enough memory is available."
    )


def test_cholesky_of_an_indefinite_matrix_names_the_eigenvalue():
    matrix = matrix_with(torch.tensor([-0.25, 1.0, 2.0], dtype=torch.float64))
    assert _refusal(Cholesky(), Matrix(matrix)) == (
        "The curvature is not positive definite: its smallest eigenvalue is -2.5e-01.\n"
        "  Damping 0.4 would do (damping=0.4). Or train to a minimum, or use curvature GaussNewton with "
        "damping."
    )
    Cholesky().prepare(Damped(Matrix(matrix), 0.4)).solve(ONES).require()  # the advice works


def test_cholesky_of_a_matrix_that_is_declared_positive():
    matrix = matrix_with(torch.tensor([-0.25, 1.0, 2.0], dtype=torch.float64))
    assert _refusal(Cholesky(), Matrix(matrix, Definite.SEMI)) == (
        "The curvature is not positive definite: its smallest eigenvalue is -2.5e-01.\n"
        "  Damping 0.4 would do (damping=0.4). Or use float64: it is declared positive semi-definite, as "
        "it is where loss and penalty are convex."
    )


def test_cholesky_of_a_matrix_that_is_not_finite():
    assert _refusal(Cholesky(), _diagonal(1.0, float("nan"), 2.0)) == (
        "The curvature holds NaN or infinity: the loss has no finite second derivative at this checkpoint."
    )


def test_cholesky_misses_its_tolerance():
    hard = matrix_with(torch.logspace(-4, 2, 30, dtype=torch.float64)).float()
    B = torch.randn(1, 30, generator=torch.Generator().manual_seed(0))
    message = _refusal(Cholesky(rtol=1e-8), Matrix(hard), B)
    assert re.fullmatch(
        r"query 1 of 1: Cholesky left a relative residual of \d\.\de-0\d, above the tolerance of 1\.0e-08: the "
        r"matrix is too "
        r"ill-conditioned for torch\.float32, or the test gradient reaches weights that no training sample and no "
        r"penalty touch; use float64 \(dtype='float64'\), a penalty or damping\.",
        message,
    )


def test_queries_that_fail_alike_are_listed_once():
    advice = ("residual 1.02e-05: use float64", "residual 1.3e-05: use float64", "", "another reason")
    status = (Status.NOT_CONVERGED, Status.NOT_CONVERGED, Status.CONVERGED, Status.NOT_CONVERGED)
    solution = Solution(torch.zeros(4, 1), torch.ones(4), torch.ones(4, dtype=torch.int64), status, advice)
    with pytest.raises(SolveError) as caught:
        solution.require()
    assert str(caught.value) == (
        "query 1 of 4: residual 1.02e-05: use float64\n  Another query fails likewise.\n  query 4 of 4: another reason"
    )


def test_lissa_diverging_advises_a_scale_that_works():
    problem = Logistic.make(n=20)
    H = Hessian(problem.objective(), problem.theta)
    B = problem.gradients(problem.theta, problem.queries["x"], problem.queries["labels"])
    message = _refusal(LiSSA(depth=150, repeats=2, scale=0.1), H, B)
    found = re.fullmatch(
        r"query 1 of 3: LiSSA diverged by step (\d+) with scale 0\.1: batches of 1 have eigenvalues up to (\S+), and "
        r"the recursion needs scale > (\S+)\.\n  Use scale (\S+) \(or leave scale out: it is then estimated\), or "
        r"larger "
        r"batches\."
        r"\n  2 other queries fail likewise\.",
        message,
    )
    assert found, message
    step, highest, half, advised = int(found[1]), *map(float, found.groups()[1:4])
    assert step <= 150
    single = [torch.linalg.eigvalsh(problem.dense_hessian(ids=torch.tensor([i])))[-1] for i in range(20)]
    assert highest == pytest.approx(float(max(single)), rel=1e-3)  # power iteration from below, four digits printed
    assert half == pytest.approx(highest / 2, rel=1e-3)
    assert advised == pytest.approx(1.25 * highest, rel=1e-3)
    settled = LiSSA(depth=150, repeats=10, scale=advised).prepare(H).solve(B).require()
    assert (settled.residual < 1).all()  # closer than no answer at all; the noise of single samples remains


def test_lissa_diverging_slowly_is_not_taken_for_an_answer():
    """Factor 1.1 a step for 90 steps: 5e3, once below the threshold."""
    assert "LiSSA diverged by step 90 with scale 1" in _refusal(LiSSA(depth=90, scale=1.0), _diagonal(0.5, 1.0, 2.1))


def test_lissa_diverging_along_negative_curvature_does_not_blame_the_scale():
    A = _diagonal(-0.5, 1.0, 2.0)
    message = _refusal(LiSSA(depth=100, scale=3.0), A)
    found = re.fullmatch(
        r"query 1 of 1: LiSSA diverged by step \d+ with scale 3: batches of 1 have eigenvalues down to (\S+), along "
        r"which the recursion grows\.\n  Raise damping by more than (\S+), use curvature GaussNewton, or larger "
        r"batches\.",
        message,
    )
    assert found, message
    assert float(found[1]) == pytest.approx(-0.5, rel=1e-3)
    LiSSA(depth=100, scale=3.0).prepare(Damped(A, float(found[2]))).solve(ONES).require()


def test_lissa_misses_a_residual_it_was_held_to():
    # one step with scale 4 from h = b: h = b + (1 − 2/4) b, x = h / 4 = 0.375 b, residual 1 − 0.75
    message = _refusal(LiSSA(depth=1, scale=4.0, max_residual=0.2), _diagonal(2.0, 2.0, 2.0))
    assert message == (
        "query 1 of 1: LiSSA left a true residual of 2.5e-01, max_residual is 2.0e-01; raise depth and repeats, or use "
        "solver CG."
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (lambda: CG(rtol=0.0), "CG needs a tolerance 0 < rtol < 1, got 0.0."),
        (lambda: CG(rtol=float("nan")), "CG needs a tolerance 0 < rtol < 1, got nan."),
        (lambda: CG(max_steps=0), "CG needs max_steps >= 1, got 0."),
        (lambda: Cholesky(rtol=-1.0), "Cholesky needs a tolerance 0 < rtol < 1 (or null), got -1.0."),
        (lambda: Cholesky(block=0), "Cholesky needs max_bytes and block >= 1, got 4294967296 and 0."),
        (lambda: LiSSA(depth=0), "LiSSA needs depth, repeats and batch >= 1, got 0, 10 and 1."),
        (lambda: LiSSA(batch=-1), "LiSSA needs depth, repeats and batch >= 1, got 1000, 10 and -1."),
        (lambda: LiSSA(scale=0.0), "LiSSA needs a finite scale > 0, got 0.0."),
        (lambda: LiSSA(scale=float("inf")), "LiSSA needs a finite scale > 0, got inf."),
        (lambda: Nystrom(rank=0), "Nystrom needs rank >= 1 and rows >= 1 (or null), got 0 and 4096."),
        (lambda: Nystrom(rows=0), "Nystrom needs rank >= 1 and rows >= 1 (or null), got 300 and 0."),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(InputError) as caught:
        settings()
    assert str(caught.value) == message


def test_lissa_needs_an_operator_that_can_be_sampled():
    with pytest.raises(InputError, match=r"^This solver draws samples of its operator; Products cannot be sampled\."):
        LiSSA().prepare(Damped(Products(torch.eye(2, dtype=torch.float64)), 0.1))


def test_nystrom_of_products_is_taken_from_the_whole():
    A = Damped(Products(matrix_with(torch.tensor([0.1, 1.0, 100.0], dtype=torch.float64))), 0.1)
    plain, helped = (CG(rtol=1e-12, preconditioner=P).prepare(A).solve(ONES).require() for P in (None, Nystrom(rank=3)))
    assert int(helped.steps[0]) == 1  # full rank: P is the inverse
    torch.testing.assert_close(helped.value, plain.value, rtol=1e-10, atol=0)  # condition 500 times 1e-12


def test_nystrom_of_a_matrix_without_full_rank():
    """H without penalty is singular; b in its range has an answer, and the preconditioner must not spoil it."""
    matrix = matrix_with(torch.tensor([0.0, 0.0, 1.0, 2.0, 5.0], dtype=torch.float64))
    B = torch.ones(1, 5, dtype=torch.float64) @ matrix
    solution = CG(rtol=1e-10, preconditioner=Nystrom(rank=5)).prepare(Matrix(matrix)).solve(B).require()
    assert float((solution.value @ matrix - B).norm() / B.norm()) <= 1e-10


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (
            torch.diag(torch.tensor([-1.0, 1.0, 2.0], dtype=torch.float64)),
            "The curvature is not positive definite: its smallest eigenvalue is about -1.0e+00. It has no Nyström "
            "preconditioner.\n"
            "  Damping 1.5 would do (damping=1.5). Or train to a minimum, or use curvature GaussNewton "
            "with damping.",
        ),
        (
            torch.full((3, 3), float("nan"), dtype=torch.float64),
            "The Nyström sketch of the curvature holds NaN or infinity at this checkpoint.",
        ),
    ],
)
def test_nystrom_refuses(matrix, message):
    assert _refusal(CG(preconditioner=Nystrom()), Matrix(matrix)) == message


def test_only_the_first_failures_are_listed_and_by_their_number_among_all():
    status = (Status.CONVERGED, *[Status.DIVERGED] * 5)
    solution = Solution(torch.zeros(6, 2), torch.ones(6), torch.ones(6, dtype=torch.int64), status, ("", *"abcde"))
    with pytest.raises(SolveError) as caught:
        solution.require(first=16, total=40)
    assert str(caught.value) == ("query 18 of 40: a\n  query 19 of 40: b\n  query 20 of 40: c\n  ... and 2 more")


def test_a_float32_factor_is_refined_to_the_rounding_of_its_solution():
    A = matrix_with(torch.logspace(-4, 2, 30, dtype=torch.float64)).float()  # condition number 1e6
    B = torch.randn(5, 30, generator=torch.Generator().manual_seed(0))
    found = Cholesky(rtol=1e-4).prepare(Matrix(A)).solve(B).value.double()
    truth = torch.linalg.solve(A.double(), B.double().T).T
    assert ((found - truth).norm(dim=1) <= 4 * torch.finfo(torch.float32).eps * truth.norm(dim=1)).all()
