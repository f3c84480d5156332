"""The claim against exact refits: scores are derivatives in a sample's weight, and predict its removal."""

from itertools import pairwise

import pytest
import torch

from ifloo.attribution import predicted_change
from ifloo.curvature import Damped
from ifloo.objective import SampleWeights
from ifloo.solvers import CG
from tests.problems import Logistic, Ridge


@pytest.fixture(scope="module")
def ridge():
    return Ridge.make()


@pytest.fixture(scope="module")
def logistic():
    return Logistic.make()


def _weights(problem, i, value, others=1.0):
    weights = torch.full((problem.n,), others, dtype=torch.float64)
    weights[i] = value
    return weights


def test_ridge_refit_is_the_influence_step_over_one_minus_leverage(ridge):
    """Quadratic J: taking w_i to 0 moves θ by H⁻¹∇ℓ_i / n, divided by (1 − h_i) (Sherman & Morrison 1950): exact."""
    gradients = ridge.gradients(ridge.theta, ridge.x, ridge.labels)
    engine = ridge.engine(CG(rtol=1e-14))
    step = engine.prepared.solve(gradients).require().value / ridge.n
    refit = torch.stack([ridge.fit(_weights(ridge, i, 0.0)) - ridge.theta for i in range(ridge.n)])
    torch.testing.assert_close(step / (1 - ridge.leverages())[:, None], refit, rtol=0, atol=1e-12)


def test_ridge_zero_weight_prediction_is_exact_in_the_loss_up_to_its_own_curvature(ridge):
    """L_t is quadratic: ΔL_t = g·δ + ½ (z·δ)², δ the exact step, g·δ = −s / (1 − h)."""
    scores = ridge.engine().scores(ridge.queries)
    predicted = predicted_change(scores.value, 0.0, "zero_weight") / (1 - ridge.leverages())
    refits = torch.stack([ridge.fit(_weights(ridge, i, 0.0)) for i in range(ridge.n)])
    actual = torch.stack([ridge.query_losses(t) for t in refits], 1) - ridge.query_losses(ridge.theta)[:, None]
    second = 0.5 * (ridge.queries["x"] @ (refits - ridge.theta).T).square()
    torch.testing.assert_close(actual - second, predicted, rtol=0, atol=1e-12)


def test_scores_are_the_dense_formula(ridge, logistic):
    for problem in (ridge, logistic):
        scores = problem.engine().scores(problem.queries)
        torch.testing.assert_close(scores.value, problem.scores(), rtol=0, atol=1e-13)  # scores are near 0.01
        assert scores.query_ids.tolist() == [100, 101, 102]
        assert scores.train_ids.tolist() == list(range(problem.n))


def test_halving_the_weight_step_quarters_the_error(logistic):
    """S is the derivative ∂L_t/∂w_i because central differences of exact refits converge to it at the right rate."""
    value = logistic.engine().scores(logistic.queries).value[0]
    for i in value.abs().topk(3).indices.tolist():
        errors = [abs(_central_difference(logistic, i, eps) - float(value[i])) for eps in (0.2, 0.1, 0.05, 0.025)]
        assert all(3.9 < a / b < 4.1 for a, b in pairwise(errors)), errors


def _central_difference(problem, i, eps):
    up, down = (
        problem.query_losses(problem.fit(_weights(problem, i, 1 + step), problem.theta))[0] for step in (eps, -eps)
    )
    return float(up - down) / (2 * eps)


def test_drop_prediction_centres_the_scores_to_second_order():
    """Repeating the data k times makes one sample's share 1/k: the centred prediction's error falls as 1/k², the
    uncentred one's only as 1/k.
    """
    errors = {"centred": [], "raw": []}
    for copies in (1, 2, 4, 8):
        problem = _repeated(copies)
        scores = problem.engine().scores(problem.queries)
        i = int(scores.value[0, : problem.n // copies].abs().argmin())  # the mean is most of what its removal does
        refit = problem.fit(_weights(problem, i, 0.0, others=problem.n / (problem.n - 1)), problem.theta)
        actual = float((problem.query_losses(refit) - problem.query_losses(problem.theta))[0])
        centred = predicted_change(scores.value[0], float(scores.mean[0]), "drop")[i]
        errors["centred"].append(abs(float(centred) - actual))
        errors["raw"].append(abs(float(-scores.value[0, i]) - actual))
    # the ratios approach 4 and 2 with corrections of order 1/n, n = 400: within 5 %
    assert errors["centred"][-2] / errors["centred"][-1] == pytest.approx(4, rel=0.05), errors
    assert errors["raw"][-2] / errors["raw"][-1] == pytest.approx(2, rel=0.05), errors


def _repeated(copies):
    one = Logistic.make()
    problem = Logistic(one.module, one.x.repeat(copies, 1), one.labels.repeat(copies), one.queries, one.penalty)
    assert torch.linalg.vector_norm(torch.autograd.functional.jacobian(problem.value, problem.theta)) < 1e-13
    return problem


def test_self_influence_is_never_negative(logistic):
    """−s[i, i] = (1/n) ∇ℓ_iᵀ H⁻¹ ∇ℓ_i."""
    itself = {"x": logistic.x, "labels": logistic.labels}
    scores = logistic.engine().scores(itself)
    own = -scores.value.diagonal()
    assert (own > 0).all()
    gradients = logistic.gradients(logistic.theta, logistic.x, logistic.labels)
    exact = (gradients * torch.linalg.solve(logistic.dense_hessian(), gradients.T).T).sum(1) / logistic.n
    # ∇ℓ_i holds p − 1, good to 2e-16 whatever its size: what is absolute counts for samples that are well explained.
    torch.testing.assert_close(own, exact, rtol=1e-12, atol=1e-14 * float(exact.max()))


def test_a_group_is_the_sum_of_its_scores_to_second_order(logistic):
    """Weights of three samples lowered together by ε: error of the sum falls as ε² (here halved: quartered)."""
    value = logistic.engine().scores(logistic.queries).value[0]
    group = torch.tensor([3, 11, 30])

    def change(eps):
        weights = torch.ones(logistic.n, dtype=torch.float64)
        losses = []
        for sign in (1, -1):
            weights[group] = 1 - sign * eps
            losses.append(logistic.query_losses(logistic.fit(weights, logistic.theta))[0])
        return float(losses[0] - losses[1]) / (2 * eps)

    errors = [abs(change(eps) + float(value[group].sum())) for eps in (0.1, 0.05)]
    assert 3.9 < errors[0] / errors[1] < 4.1


def test_the_error_bound_covers_the_actual_error(logistic):
    """Loose solves: no score is further from the exact one than its certificate says, and the bound is not idle."""
    exact = logistic.scores()
    for rtol in (0.5, 0.1, 1e-2, 1e-4):
        scores = logistic.engine(CG(rtol=rtol)).scores(logistic.queries)
        error = (scores.value - exact).abs().max(1).values
        assert scores.certificate.error_bound is not None
        assert (error <= scores.certificate.error_bound).all()
        assert (error >= 1e-4 * scores.certificate.error_bound).all()  # μ = λ is far below most eigenvalues


def test_a_damped_solve_reports_both_residuals(logistic):
    engine = logistic.engine()
    damped = type(engine)(engine.objective, engine.theta, Damped(engine.curvature, 0.1), CG(rtol=1e-12), 0.02)
    certificate = damped.directions(logistic.queries).certificate
    H = logistic.dense_hessian()
    b = logistic.gradients(logistic.theta, logistic.queries["x"], logistic.queries["labels"])
    x = torch.linalg.solve(H + 0.1 * torch.eye(len(H), dtype=H.dtype), b.T).T
    undamped = (b - x @ H).norm(dim=1) / b.norm(dim=1)
    assert (certificate.residual <= 1e-12).all()
    torch.testing.assert_close(certificate.undamped_residual, undamped, rtol=1e-9, atol=0)  # of a solve to 1e-12


def test_weights_of_a_removal():
    drop = SampleWeights.removing([3], "drop", 5).of(torch.arange(5), torch.float64)
    assert drop.tolist() == [1.25, 1.25, 1.25, 0.0, 1.25]  # n / (n − 1): the mean runs over the four that remain
    zero = SampleWeights.removing([3, 1], "zero_weight", 5).of(torch.tensor([3, 2, 1, 9]), torch.float64)
    assert zero.tolist() == [0.0, 1.0, 0.0, 1.0]
    group = SampleWeights.removing([0, 4], "drop", 5).of(torch.arange(5), torch.float32)
    assert group.tolist() == pytest.approx([0.0, 5 / 3, 5 / 3, 5 / 3, 0.0])
    assert group.dtype is torch.float32
