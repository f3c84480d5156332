"""Scores, products and leverages of linear heads against dense algebra on plain autograd's derivatives."""

from itertools import pairwise

import pytest
import torch

from ifloo.attribution import ForwardProducts, HeadProducts, InfluenceEngine
from ifloo.attribution.leverage import SampleBlocks, removal_effects
from ifloo.curvature import Damped, Hessian, LinearHead
from ifloo.errors import InputError
from ifloo.objective.ids import positions_of
from ifloo.solvers import CG, Auto, Cholesky, Kronecker, Subsampled
from tests.curvature.heads import HEADS, N

# Solves to 1e-13 of systems of condition below 1e3, and scores below 1.
CLOSE = {"rtol": 1e-10, "atol": 1e-12}
SOLVERS = [
    Cholesky(),
    CG(1e-13, preconditioner=Kronecker()),
    CG(1e-13, preconditioner=Subsampled(rows=40)),
    Auto(),
]
case_of = {case.name: case for case in HEADS}


def _engine(case, solver=None, size=7, dtype=None):
    head = LinearHead(case.objective(size), case.theta)
    return InfluenceEngine(head.objective, case.theta, head, solver or Cholesky(), None, HeadProducts(head, dtype))


def _truth(case):
    queries = case.gradients(case.queries["x"], case.queries["y"])
    return -queries @ torch.linalg.solve(case.hessian(), case.gradients(case.x, case.y).T) / N


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
@pytest.mark.parametrize("name", [n for n in case_of if n != "softmax, free bias"])
def test_scores(name, solver):
    case = case_of[name]
    scores = _engine(case, solver).scores(case.queries)
    torch.testing.assert_close(scores.value, _truth(case), **CLOSE)
    assert scores.train_ids.tolist() == list(range(0, 3 * N, 3))


def test_a_free_bias_has_scores_where_the_general_path_has_none():
    """H is singular along one bias for all classes; no gradient has a part there, so the scores are defined."""
    case = case_of["softmax, free bias"]
    queries, training = case.gradients(case.queries["x"], case.queries["y"]), case.gradients(case.x, case.y)
    truth = -queries @ torch.linalg.pinv(case.hessian(), hermitian=True) @ training.T / N
    scores = _engine(case).scores(case.queries)
    torch.testing.assert_close(scores.value, truth, **CLOSE)
    assert scores.certificate.residual.max() < 1e-13


@pytest.mark.parametrize("m", [1, 3, 40], ids="{} directions".format)
@pytest.mark.parametrize("case", HEADS, ids=str)
def test_products_for_few_and_for_many_directions(case, m):
    head = LinearHead(case.objective(), case.theta)
    V = torch.randn(m, head.size, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    truth = V @ case.gradients(case.x, case.y).T
    for dtype, close in ((torch.float64, CLOSE), (torch.float32, {"rtol": 2e-5, "atol": 2e-5})):  # 32 bits, sums of 20
        by = HeadProducts(head, dtype)
        found = torch.cat([by.of(chunk, V) for chunk in by.chunks()], 1)
        assert found.dtype is dtype
        torch.testing.assert_close(found.double(), truth, **close)


@pytest.mark.parametrize("case", HEADS, ids=str)
def test_products_of_samples_that_the_head_has_not_seen(case):
    V = torch.randn(3, len(case.theta), generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    found = HeadProducts(LinearHead(case.objective(), case.theta)).of(case.queries, V)
    torch.testing.assert_close(found, V @ case.gradients(**_xy(case.queries)).T, **CLOSE)


@pytest.mark.parametrize("case", HEADS, ids=str)
def test_query_gradients_and_the_largest_of_training(case):
    by = HeadProducts(LinearHead(case.objective(), case.theta))
    torch.testing.assert_close(by.query_gradients(case.queries), case.gradients(**_xy(case.queries)), **CLOSE)
    assert by.largest_gradient() == pytest.approx(float(case.gradients(case.x, case.y).norm(dim=1).max()), rel=1e-12)


def _xy(batch):
    return {"x": batch["x"], "y": batch["y"]}


@pytest.mark.parametrize("shards", [1, 2, 5, 30])
def test_shards_hold_each_sample_once_and_in_order(shards):
    case = case_of["softmax"]
    head = LinearHead(case.objective(7), case.theta)
    V = torch.randn(2, head.size, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    for by in (HeadProducts(head), ForwardProducts(head.objective, case.theta, 4)):
        ends = [N * k // shards for k in range(shards + 1)]
        parts = [
            by.of(chunk, V) for start, stop in pairwise(ends) if start < stop for chunk in by.loader(slice(start, stop))
        ]
        torch.testing.assert_close(torch.cat(parts, 1), V @ case.gradients(case.x, case.y).T, **CLOSE)


@pytest.mark.parametrize("damping", [0.0, 0.2])
@pytest.mark.parametrize("name", [n for n in case_of if n not in ("softmax, free bias", "softmax, weighted samples")])
def test_removal_effects_and_leverages(name, damping):
    case = case_of[name]
    head = LinearHead(case.objective(), case.theta)
    prepared = Cholesky().prepare(Damped(head, damping) if damping else head)
    H = case.hessian() + damping * torch.eye(head.size, dtype=torch.float64)
    queries, training = case.gradients(**_xy(case.queries)), case.gradients(case.x, case.y)
    ids = [0, 9, 3 * (N - 1), 15]
    directions = prepared.solve(queries).require().value
    effects, leverages = removal_effects(head, prepared, directions, ids)
    for k, i in enumerate(ids):
        own = case.sample_hessian(i // 3)
        truth = queries @ torch.linalg.solve(H - own / N, training[i // 3]) / N
        torch.testing.assert_close(effects[:, k], truth, **CLOSE)
        assert float(leverages[k]) == pytest.approx(float(torch.linalg.solve(H, own).trace()) / N, rel=1e-10)


def test_for_one_output_the_correction_is_one_less_the_leverage():
    case = case_of["binary logistic"]
    head = LinearHead(case.objective(), case.theta)
    prepared = Cholesky().prepare(head)
    directions = prepared.solve(case.gradients(**_xy(case.queries))).require().value
    effects, leverages = removal_effects(head, prepared, directions, list(range(0, 3 * N, 3)))
    torch.testing.assert_close(effects, -_truth(case) / (1 - leverages), **CLOSE)


def test_leverages_sum_to_the_effective_dimension():
    case = case_of["softmax"]
    head = LinearHead(case.objective(), case.theta)
    blocks = SampleBlocks.of(head, range(0, 3 * N, 3))
    total = blocks.leverages(blocks.quadratic_forms(Cholesky().prepare(head))).sum()
    H = case.hessian()
    loss_part = H - 0.07 * torch.eye(len(H), dtype=H.dtype)
    assert float(total) == pytest.approx(float(torch.linalg.solve(H, loss_part).trace()), rel=1e-12)


@pytest.mark.parametrize("solver", [CG(1e-13), Cholesky()], ids=str)
def test_quadratic_forms(solver):
    case = case_of["last layer"]
    head = LinearHead(case.objective(), case.theta)
    B = torch.randn(2, 3, head.size, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    truth = B @ torch.linalg.solve(case.hessian(), B.mT)
    torch.testing.assert_close(solver.prepare(head).quadratic_forms(B), truth, **CLOSE)


def test_an_id_that_is_none_of_the_training_data():
    with pytest.raises(InputError) as caught:
        positions_of(torch.arange(0, 69, 3), [3, 4])
    assert str(caught.value) == "Ids [4] are not among the 23 training ids.\n  Give ids of training samples."


def test_the_kronecker_preconditioner_is_exact_for_one_curvature_for_all():
    """Least squares: S is the same for every sample, so that H is a Kronecker product and one step is enough."""
    case = case_of["least squares"]
    engine = _engine(case, CG(1e-12, preconditioner=Kronecker()))
    assert engine.directions(case.queries).certificate.steps.max() <= 2


def test_kronecker_needs_a_head():
    case = case_of["softmax"]
    with pytest.raises(InputError) as caught:
        Kronecker().prepare(Hessian(case.objective(), case.theta))
    assert str(caught.value) == (
        "The Kronecker preconditioner needs a linear head, got Hessian.\n"
        "  Use curvature LinearHead for the parameters of one linear layer, or preconditioner Nystrom."
    )
