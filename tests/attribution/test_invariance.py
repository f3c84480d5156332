"""How the work is cut up must not show in the scores."""

import pytest
import torch

from ifloo.attribution import engine as engine_module
from ifloo.curvature import Hessian
from ifloo.objective import FunctionalLosses, Identified, Objective, TrainingData
from ifloo.params import ParamSpace
from ifloo.solvers import CG, Cholesky, Nystrom
from tests.problems import Logistic, as_tuple

# Two solves to 1e-13 may differ by 2 ‖∇ℓ‖ 1e-13 ‖b‖ / (n μ) with n μ = 1 and norms near 1. Scores are near 0.01.
REASSOCIATED = {"rtol": 0, "atol": 2e-13}
SOLVER = CG(rtol=1e-13)


@pytest.fixture(scope="module")
def problem():
    return Logistic.make(m=7)


@pytest.fixture(scope="module")
def expected(problem):
    return problem.engine(SOLVER).scores(problem.queries)


@pytest.mark.parametrize("block", [1, 3, 7, 16])
def test_query_blocks(problem, expected, monkeypatch, block):
    monkeypatch.setattr(engine_module, "QUERY_BLOCK", block)
    scores = problem.engine(SOLVER).scores(problem.queries)
    torch.testing.assert_close(scores.value, expected.value, **REASSOCIATED)
    assert torch.equal(scores.query_ids, expected.query_ids)
    assert torch.equal(scores.certificate.steps, expected.certificate.steps)


@pytest.mark.parametrize("batch_size", [1, 7, 50])
def test_batch_sizes(problem, expected, batch_size):
    scores = problem.engine(SOLVER, batch_size).scores(problem.queries)
    torch.testing.assert_close(scores.value, expected.value, **REASSOCIATED)


def test_training_order_and_ids_follow(problem, expected):
    order = torch.randperm(problem.n, generator=torch.Generator().manual_seed(0))
    scores = problem.engine(SOLVER, order=order).scores(problem.queries)
    assert torch.equal(scores.train_ids, order)
    torch.testing.assert_close(scores.value, expected.value[:, order], **REASSOCIATED)


def test_query_order(problem, expected):
    reverse = {k: v.flip(0) for k, v in problem.queries.items()}
    scores = problem.engine(SOLVER).scores(reverse)
    torch.testing.assert_close(scores.value, expected.value.flip(0), **REASSOCIATED)
    assert torch.equal(scores.query_ids, expected.query_ids.flip(0))


@pytest.mark.parametrize("solver", [SOLVER, CG(rtol=1e-13, preconditioner=Nystrom(rank=5, rows=20)), Cholesky()])
def test_data_read_anew_on_each_pass_or_kept(problem, expected, solver):
    for how in ({"cache_bytes": 0}, {"cache_bytes": 500}, {}):
        scores = problem.engine(solver, **how).scores(problem.queries)
        torch.testing.assert_close(scores.value, expected.value, **REASSOCIATED)


def test_batches_as_dicts_or_tuples(problem, expected):
    queries = (problem.queries["x"], problem.queries["labels"])
    queries = Identified((*queries, problem.queries["idx"]), problem.queries["idx"])
    scores = problem.engine(SOLVER, form=as_tuple).scores(queries)
    torch.testing.assert_close(scores.value, expected.value, **REASSOCIATED)
    assert torch.equal(scores.query_ids, expected.query_ids)
    assert torch.equal(scores.train_ids, expected.train_ids)
    without_ids = problem.engine(SOLVER, form=lambda s: (s["x"], s["labels"])).scores(queries.batch[:2])
    assert without_ids.query_ids.tolist() == list(range(7))  # the position is the id
    assert torch.equal(without_ids.train_ids, expected.train_ids)
    torch.testing.assert_close(without_ids.value, expected.value, **REASSOCIATED)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_off_around_it(problem, expected, mode):
    """torch.func makes its own; plain autograd would fail here."""
    with mode():
        scores = problem.engine(SOLVER).scores(problem.queries)
    torch.testing.assert_close(scores.value, expected.value, **REASSOCIATED)


def test_float32_against_float64(problem, expected):
    """At 1e-5 of the largest score: 1e-7 of rounding in the gradients, times what H⁻¹ makes of it."""
    module = type(problem.module)(num_features=4, num_classes=3, l2_reg=problem.penalty, dtype="float32")
    space = ParamSpace.of(module)
    theta = problem.theta.float()
    data = TrainingData(problem.loader(), space.device, space.dtype)
    objective = Objective(FunctionalLosses(module, space), data)
    queries = {k: v.float() if v.is_floating_point() else v for k, v in problem.queries.items()}
    for solver in (CG(rtol=1e-6), Cholesky()):
        engine = engine_module.InfluenceEngine(objective, theta, Hessian(objective, theta), solver, problem.penalty)
        scores = engine.scores(queries)
        assert scores.value.dtype is torch.float32
        error = (scores.value.double() - expected.value).abs().max(1).values
        assert (error <= 1e-5 * expected.value.abs().max(1).values).all()


def test_the_model_is_left_as_it_was(problem):
    module = problem.module
    before = {k: v.clone() for k, v in module.state_dict().items()}
    module.train()
    problem.engine(SOLVER).scores(problem.queries)
    assert module.training
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert all(p.grad is None for p in module.parameters())
