"""Self-influence, losses and groups where training steps weigh the samples by class, against dense float64 algebra."""

from dataclasses import replace

import pytest
import torch
from torch.func import grad, hessian, jacrev

from ifloo.attribution import (
    GradientDot,
    InfluenceEngine,
    TrainedModel,
    certified_self,
    last_layer_self,
    left_out_losses,
    loss_ranking,
    tracin_self,
)
from ifloo.curvature import Damped, Hessian, LinearHead
from ifloo.solvers import CG, Cholesky
from tests.attribution.descents import BATCHES, CLOSE, RATES, gradients, made, states, trained
from tests.problems import Logistic

BY_CLASS = torch.tensor([1.0, 5.0, 2.0], dtype=torch.float64)
GROUP = [3, 17, 4, 30, 8]


class Weighted:
    """The logistic problem with J = Σ c_i ℓ_i + R, c_i = a_i / Σ a: by formula, and as an objective."""

    def __init__(self, by_class=BY_CLASS):
        self.problem = made(Logistic)
        self.a = by_class[self.problem.labels]
        self.c = self.a / self.a.sum()
        self.theta = self.problem.fit(self.c * self.problem.n)
        self.losses = self.problem.losses_at(self.theta, self.problem.x, self.problem.labels)
        self.G = self.problem.gradients(self.theta, self.problem.x, self.problem.labels)

    def value(self, theta, c):
        losses = self.problem.losses_at(theta, self.problem.x, self.problem.labels)
        return (c * losses).sum() + self.problem.penalty / 2 * theta @ theta

    def hessian(self, damping=0.0):
        H = hessian(self.value)(self.theta, self.c)
        return H + damping * torch.eye(len(H), dtype=H.dtype)

    def own(self, damping=0.0):
        return self.c * (torch.linalg.solve(self.hessian(damping), self.G.T).T * self.G).sum(1)

    def objective(self, batch_size=7, **how):
        plain = self.problem.objective(batch_size, **how)
        return plain.weighted(self.a[plain.data.ids])

    def engine(self, solver=None, damping=0.0, head=False, batch_size=7):
        objective = self.objective(batch_size)
        H = (LinearHead if head else Hessian)(objective, self.theta)
        curvature = Damped(H, damping) if damping else H
        return InfluenceEngine(objective, self.theta, curvature, solver or Cholesky(), self.problem.penalty)


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_self_influence_has_the_weight_once(head, damping):
    case = Weighted()
    for size in (1, 7, 1000):
        found = certified_self(case.engine(None, damping, head, size))
        torch.testing.assert_close(found.value, case.own(damping), **CLOSE)


def test_it_is_the_score_of_each_sample_on_itself():
    case, problem = Weighted(), made(Logistic)
    engine = case.engine()
    scores = engine.scores({"x": problem.x, "labels": problem.labels, "idx": torch.arange(problem.n)})
    torch.testing.assert_close(certified_self(engine).value, -scores.value.diagonal(), **CLOSE)


def test_no_value_is_further_off_than_its_bound():
    case = Weighted()
    found = certified_self(case.engine(CG(0.1)))
    off, tight = (found.value - case.own()).abs(), found.residual * case.c * case.G.square().sum(1)
    assert (off <= found.error_bound).all()
    assert off.max() > 1e-6  # a poor solve, so that there is something to bound
    torch.testing.assert_close(found.error_bound, tight / case.problem.penalty, **CLOSE)


def test_samples_without_weight_have_no_self_influence_but_a_loss():
    case = Weighted(torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64))
    engine = case.engine(head=True)
    own, free = certified_self(engine), case.problem.labels == 1
    torch.testing.assert_close(own.value, case.own(), **CLOSE)
    assert own.value[free].tolist() == [0.0] * int(free.sum())
    torch.testing.assert_close(loss_ranking(engine.objective, case.theta), case.losses, **CLOSE)
    left_out = left_out_losses(engine.curvature, engine.prepared, own)
    torch.testing.assert_close(left_out[free], case.losses[free], **CLOSE)


@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_self_influence_in_the_last_layer_has_the_weight_once(damping):
    case = Weighted()
    found = last_layer_self(case.objective(), case.theta, damping)
    torch.testing.assert_close(found, case.own(damping), **CLOSE)


def test_self_influence_by_tracin_has_the_weight_once():
    case, problem = Weighted(), made(Logistic)
    plain, truth = trained(Logistic), torch.zeros(made(Logistic).n, dtype=torch.float64)
    for step, ids, rate in zip((2, 2, 3, 6, 6, 6), BATCHES, RATES.tolist(), strict=True):
        _, G = gradients(problem, states(Logistic)[step])
        truth[ids] += rate / len(ids) * case.c[ids] * problem.n * G[ids].square().sum(1)
    found = tracin_self(TrainedModel(case.objective(), plain.theta, plain.run))
    torch.testing.assert_close(found, truth, **CLOSE)


def test_losses_are_ranked_without_weights():
    case = Weighted()
    torch.testing.assert_close(loss_ranking(case.objective(), case.theta), case.losses, **CLOSE)


@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_losses_left_out_are_without_weights_after_a_newton_step(damping):
    """ℓ_i at θ + c_i (H + δI − c_i ∇²ℓ_i)⁻¹ ∇ℓ_i, a dense solve each."""
    case, problem = Weighted(), made(Logistic)
    engine, H, truth = case.engine(None, damping, head=True), case.hessian(damping), []
    for i in range(problem.n):

        def loss(theta, i=i):
            return problem.losses_at(theta, problem.x[i : i + 1], problem.labels[i : i + 1])[0]

        step = case.c[i] * torch.linalg.solve(H - case.c[i] * hessian(loss)(case.theta), case.G[i])
        truth.append(loss(case.theta + step))
    curvature = engine.curvature.base if damping else engine.curvature
    found = left_out_losses(curvature, engine.prepared, certified_self(engine))
    torch.testing.assert_close(found, torch.stack(truth), **CLOSE)


def test_a_group_is_predicted_to_first_order_in_its_weights():
    """Truth: the derivative of L_t along w_G = 1 − ε, for J divided by Σ w_i c_i (drop) or not (zero_weight)."""
    case, problem = Weighted(), made(Logistic)
    in_group = torch.zeros(problem.n, dtype=torch.float64)
    in_group[GROUP] = 1
    scores = case.engine().scores(problem.queries)
    order = torch.randperm(problem.n, generator=torch.Generator().manual_seed(0))
    objective = case.objective(order=order)
    moved = replace(case.engine(), objective=objective, curvature=Hessian(objective, case.theta))
    queries = problem.gradients(case.theta, problem.queries["x"], problem.queries["labels"])

    def slope(eps, removal):
        c = case.c * (1 - eps * in_group)
        return grad(case.value)(case.theta, c / c.sum() if removal == "drop" else c)

    for removal in ("drop", "zero_weight"):
        rate = jacrev(slope)(torch.zeros((), dtype=torch.float64), removal)
        truth = -queries @ torch.linalg.solve(case.hessian(), rate)
        torch.testing.assert_close(scores.group(GROUP, removal), truth, **CLOSE)
        torch.testing.assert_close(moved.scores(problem.queries).group(GROUP, removal), truth, **CLOSE)


def test_a_method_centres_a_group_by_weights_too():
    case, problem = Weighted(), made(Logistic)
    found = GradientDot().scores(TrainedModel(case.objective(), case.theta), problem.queries)
    queries = problem.gradients(case.theta, problem.queries["x"], problem.queries["labels"])
    step = (case.c[GROUP].unsqueeze(1) * case.G[GROUP]).sum(0) - case.c[GROUP].sum() * (case.c @ case.G)
    torch.testing.assert_close(found.group(GROUP), queries @ step, **CLOSE)
