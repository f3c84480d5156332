"""A linear head bounds its eigenvalues from below, so that scores through it have a known error."""

import lightning as L
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from ifloo.attribution import InfluenceFunction, TrainedModel
from ifloo.curvature import LinearHead
from ifloo.models import Adapted
from ifloo.objective import Objective
from ifloo.solvers import CG, Cholesky
from ifloo.stages import AttributionSettings
from ifloo.stages.scores.engine_choice import engine_for
from tests.curvature.heads import HEADS

D = torch.float64
L2 = 0.02


@pytest.mark.parametrize("case", HEADS, ids=str)
def test_no_eigenvalue_is_below_the_bound(case):
    lowest = torch.linalg.eigvalsh(case.hessian())[0]
    assert LinearHead(case.objective(), case.theta).lower_bound <= lowest + 1e-12


@pytest.mark.parametrize("name", ["softmax", "softmax, bias", "least squares"])
def test_the_bound_of_a_convex_loss_is_the_penalty(name):
    (case,) = (one for one in HEADS if one.name == name)
    assert LinearHead(case.objective(), case.theta).lower_bound == pytest.approx(0.07, rel=1e-12)


class Plain(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.body(x)))

    def training_step(self, batch, _):
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Concave(Plain):
    """Its loss is not convex in the outputs."""

    def training_step(self, batch, _):
        return torch.tanh(F.cross_entropy(self(batch[0]), batch[1]))


def problem(net=Plain, l2=L2, dtype=D):
    torch.manual_seed(0)
    x, module = torch.randn(40, 4, dtype=D).to(dtype), Adapted(net().to(D), l2=l2).to(dtype)
    y = torch.arange(40) % 3
    return Objective.of(module, DataLoader(TensorDataset(x, y), batch_size=40), ("head.*",)), (x[:6] * 0.8, y[:6])


def exact(net=Plain, damping=0.0, l2=L2):
    """Returns the scores by dense float64 matrices of plain autograd."""
    (objective, queries), model = problem(net, l2), problem(net, l2)[0].losses.module.model
    names, start = ("head.weight", "head.bias"), objective.losses.theta()

    def loss(theta, x, y):
        parts = {"head.weight": theta[:15].view(3, 5), "head.bias": theta[15:]}
        h = torch.tanh(model.body(x)) @ parts[names[0]].T + parts[names[1]]
        return F.cross_entropy(h, y) if net is Plain else torch.tanh(F.cross_entropy(h, y))

    (batch,) = objective.data
    rows = [(batch[0][i : i + 1], batch[1][i : i + 1]) for i in range(40)]
    J = lambda t: sum(loss(t, *r) for r in rows) / 40 + l2 / 2 * t @ t  # ruff: ignore[lambda-assignment]
    H = torch.autograd.functional.hessian(J, start) + damping * torch.eye(18, dtype=D)
    gradient = torch.func.grad(loss)
    G = torch.stack([gradient(start, *r) for r in rows])
    Q = torch.stack([gradient(start, queries[0][t : t + 1], queries[1][t : t + 1]) for t in range(6)])
    return -(Q @ torch.linalg.solve(H, G.T)) / 40


@pytest.mark.parametrize("damping", [0.0, 0.3])
@pytest.mark.parametrize("dtype", [D, torch.float32])
def test_scores_of_an_adapted_head_with_a_penalty_have_a_bound_that_holds(dtype, damping):
    objective, queries = problem(dtype=dtype)
    settings = AttributionSettings(damping=damping, solver=CG(1e-3), curvature=LinearHead)
    found = engine_for(objective, objective.losses.theta(), settings, 6).scores(queries)
    error = (found.value.to(D) - exact(damping=damping)).abs().amax(1)
    assert found.certificate.error_bound is not None
    assert (error <= found.certificate.error_bound).all()
    assert error.max() > 1e-7  # a poor solve, so that there is something to bound


@pytest.mark.parametrize("damping", [0.0, 1.0, 10.0])
@pytest.mark.parametrize("l2", [1e-3, 1.0, 10.0])
@pytest.mark.parametrize("solver", [CG(1e-6), Cholesky()], ids=["cg", "cholesky"])
def test_the_bound_holds_for_solves_to_the_rounding_of_float32(solver, l2, damping):
    objective, queries = problem(dtype=torch.float32, l2=l2)
    settings = AttributionSettings(damping=damping, solver=solver, curvature=LinearHead)
    found = engine_for(objective, objective.losses.theta(), settings, 6).scores(queries)
    error = (found.value.to(D) - exact(damping=damping, l2=l2)).abs().amax(1)
    assert (error <= found.certificate.error_bound).all()


def test_methods_with_damping_have_a_bound_without_a_penalty():
    objective, queries = problem(l2=0.0)
    method = InfluenceFunction("head", LinearHead, 0.1, CG(1e-3))
    found = method.scores(TrainedModel(objective, objective.losses.theta()), queries)
    error = (found.value - exact(damping=0.1, l2=0.0)).abs().amax(1)
    assert (error <= found.certificate.error_bound).all()


def test_there_is_no_bound_without_a_penalty():
    objective, queries = problem(l2=0.0)
    settings = AttributionSettings(curvature=LinearHead, solver=CG(1e-3))
    engine = engine_for(objective, objective.losses.theta(), settings, 6)
    assert engine.strong_convexity <= 0
    assert engine.scores(queries).certificate.error_bound is None


def test_a_loss_that_is_not_convex_is_not_bounded_by_its_penalty():
    objective, _ = problem(Concave)
    assert LinearHead(objective, objective.losses.theta()).lower_bound < 0
