"""What belongs to curvature routes alone: damping from the run, certificates, some of the parameters, refusals."""

import functools
import logging
from dataclasses import replace

import pytest
import torch

from ifloo.attribution import InfluenceFunction, TrainedModel, influence_function
from ifloo.attribution.recorded import State, training_time
from ifloo.attribution.updates import Adam
from ifloo.curvature import GaussNewton, Hessian, LinearHead
from ifloo.errors import InputError
from ifloo.models import LogisticRegression
from ifloo.solvers import CG, Cholesky, LiSSA, SolveError, Status
from tests.attribution.descents import CLOSE, RATES, gradients, made, trained
from tests.problems import Attention, Logistic, Ridge

HEAD = ("head.*",)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_damping_from_the_run(momentum, caplog):
    """1 / Σ rates = 0.833; momentum makes the run 1/(1 − momentum) times as long."""
    given, queries = trained(Logistic, momentum=momentum), made(Logistic).queries
    damping = (1 - momentum) / float(RATES.sum())
    with caplog.at_level(logging.INFO, "ifloo.attribution.influence_function"):
        found = InfluenceFunction("gauss_newton", solver=Cholesky()).scores(given, queries)
    expected = InfluenceFunction("gauss_newton", damping=damping, solver=Cholesky()).scores(given, queries)
    # One damping by two ways to sum: a score is a sum of products up to 0.02 that may cancel, each to 2e-16 of it.
    torch.testing.assert_close(found.value, expected.value, rtol=1e-12, atol=1e-15)
    said = f"gauss_newton: damping {damping:.3g}, one over the sum of the learning rates of 6 steps."
    assert [r.message for r in caplog.records if "damping" in r.message] == [said]


def test_adam_counts_by_its_scales():
    """Each stretch of steps counts by the mean of 1/(√v̂ + ε) at its end."""
    given, update, p = trained(Logistic), Adam(beta2=0.5, epsilon=0.1), len(made(Logistic).theta)
    squares = {k: torch.linspace(0.1, 0.4, p, dtype=torch.float64) * k for k in (2, 3, 6)}

    def state(k):
        moments = (torch.zeros(p, dtype=torch.float64), squares.get(k, torch.zeros(p, dtype=torch.float64)))
        return State(given.run.state(k).theta, moments)

    scales = {k: float((1 / ((v / (1 - 0.5**k)).sqrt() + 0.1)).mean()) for k, v in squares.items()}
    expected = 0.6 * scales[2] + 0.2 * scales[3] + 0.4 * scales[6]
    assert training_time(replace(given.run, update=update, state=state)) == pytest.approx(expected, rel=1e-12)


def test_the_certificate_is_that_of_the_damped_solve():
    scores = InfluenceFunction("gauss_newton", damping=0.1).scores(trained(Attention), made(Attention).queries)
    certificate = scores.certificate
    assert certificate.damping == pytest.approx(0.1, rel=1e-15)
    assert certificate.residual.shape == (2,)
    assert 0 < certificate.residual.max() <= 1e-10
    assert certificate.undamped_residual.min() > 1e-3
    assert (certificate.steps > 1).all()
    assert certificate.status == (Status.CONVERGED,) * 2


def test_lissa_within_the_bound_of_its_own_residual():
    """No score is further from the dense one than ‖∇ℓ_i‖ ‖r‖ / (n (λ + δ))."""
    problem, damping = made(Logistic), 0.1
    solver = LiSSA(depth=300, repeats=4, batch=25)
    method = InfluenceFunction("lissa", GaussNewton, damping, solver)
    scores = method.scores(trained(Logistic), problem.queries)
    certificate, m = scores.certificate, len(scores.value)
    assert method.name == "lissa"
    assert (certificate.status, certificate.steps.tolist()) == ((Status.FIXED_STEPS,) * m, [300] * m)
    Q, G = gradients(problem, problem.theta)
    H = problem.dense_hessian() + damping * torch.eye(len(problem.theta), dtype=torch.float64)
    truth = -Q @ torch.linalg.solve(H, G.T) / problem.n
    bound = (certificate.residual * Q.norm(dim=1))[:, None] * G.norm(dim=1) / (problem.n * (problem.penalty + damping))
    assert ((scores.value - truth).abs() <= bound).all()
    assert 1e-6 < certificate.residual.max() < 0.3


def test_the_parameters_left_out_stay_at_the_minimum_and_not_where_the_module_is():
    problem = Attention.make()
    given, method = (
        TrainedModel(problem.objective(), problem.theta),
        InfluenceFunction("h", LinearHead, 0.1, Cholesky(), HEAD),
    )
    expected = method.scores(given, problem.queries).value
    problem.space.write_to(problem.module, torch.ones_like(problem.theta))
    torch.testing.assert_close(method.scores(given, problem.queries).value, expected, **CLOSE)
    assert (problem.space.values_of(problem.module) == 1).all()
    with pytest.raises(InputError):
        replace(method, parameters=("none",)).scores(given, problem.queries)
    assert (problem.space.values_of(problem.module) == 1).all()


def test_an_indefinite_curvature():
    problem = made(Attention)
    with pytest.raises(SolveError, match="CG met non-positive curvature"):
        InfluenceFunction("hessian", Hessian, 0.0, CG()).scores(trained(Attention), problem.queries)


def test_a_weight_decay_outside_of_the_objective():
    problem = Ridge.make()
    problem.module.decoupled_decay = 0.01
    with pytest.raises(InputError) as caught:
        InfluenceFunction("gauss_newton").scores(TrainedModel(problem.objective(), problem.theta), problem.queries)
    assert str(caught.value) == (
        "gauss_newton inverts the curvature of J, and this model was trained with a decoupled weight decay of 0.01: "
        "the decay is part of the optimizer's step and not of J, so that the curvature would be that of another "
        "function.\n"
        "  Use the unrolled method, which differentiates the steps themselves, or put the decay into `penalty`."
    )


@pytest.mark.parametrize("wrapped", [False, True], ids=["class", "as the command line wraps it"])
def test_a_linear_head_that_would_keep_too_much(wrapped):
    """30,000 classes: 50 x (1 + 30,000²) numbers of 8 bytes, told before any of it is made."""
    x, labels = torch.ones(50, 1, dtype=torch.float64), torch.arange(50)
    module = LogisticRegression(num_features=1, num_classes=30_000, l2_reg=0.1)
    problem = Logistic(module, x, labels, {"x": x[:1], "labels": labels[:1], "idx": labels[:1]}, 0.1)
    curvature = functools.partial(lambda kind, *at: kind(*at), LinearHead) if wrapped else LinearHead
    with pytest.raises(InputError) as caught:
        InfluenceFunction("last_layer", curvature, 0.1).scores(
            TrainedModel(problem.objective(), problem.theta), problem.queries
        )
    assert str(caught.value) == (
        "last_layer: a LinearHead of 50 training samples would keep 335.3 GiB of inputs and output curvatures, allowed "
        "are 4.0 GiB.\n"
        "  Train on fewer samples, or use curvature GaussNewton with solver CG: the same matrix, nothing kept."
    )


def test_a_linear_head_up_to_the_limit(monkeypatch):
    problem, given = made(Logistic), trained(Logistic)
    need = 50 * (4 + 3**2) * 8
    assert LinearHead.bytes_kept(problem.objective()) == need
    head, products = (InfluenceFunction("h", c, 0.1, Cholesky()) for c in (LinearHead, GaussNewton))
    monkeypatch.setattr(influence_function, "HEAD_BYTES", need)
    expected = products.scores(given, problem.queries).value
    torch.testing.assert_close(head.scores(given, problem.queries).value, expected, **CLOSE)
    monkeypatch.setattr(influence_function, "HEAD_BYTES", need - 1)
    with pytest.raises(InputError, match=r"^h: a LinearHead of 50 training samples would keep 0\.0 GiB"):
        head.scores(given, problem.queries)
