"""Self-influence of all training samples against loops and dense algebra."""

import logging

import pytest
import torch

from ifloo.attribution import TrainedModel, last_layer_self, loss_ranking, self_influence, tracin_self
from ifloo.attribution.recorded import HOW_TO_RECORD
from ifloo.errors import InputError
from ifloo.solvers import SolveError
from tests.attribution.descents import BATCHES, CLOSE, RATES, among, gradients, made, states, trained
from tests.problems import Attention, Logistic, Ridge

ENDS = {0: 2, 1: 2, 2: 3, 3: 6, 4: 6, 5: 6}
PARTS = {  # parameters, damping
    "all": (Logistic, ("*",), 0.0),
    "the last layer": (Attention, ("head.*",), 0.0),
    "the last layer, damped": (Attention, ("head.*",), 0.3),
    "no linear head": (Attention, ("embed.*", "norm.*"), 3.0),
    "no layer at all": (Ridge, ("*",), 0.1),
}


def _order(n):
    return torch.randperm(n, generator=torch.Generator().manual_seed(0))


def _dense(problem, patterns, damping):
    kept = among(problem, tuple(p.removesuffix("*") for p in patterns))
    G = gradients(problem, problem.theta)[1][:, kept]
    H = problem.dense_hessian()[kept][:, kept]
    return (G @ torch.linalg.inv(H + damping * torch.eye(len(H), dtype=H.dtype)) * G).sum(1) / problem.n


@pytest.mark.parametrize("at_once", [1, 1 << 20])
@pytest.mark.parametrize("part", PARTS)
def test_last_layer_self(part, at_once, monkeypatch):
    kind, patterns, damping = PARTS[part]
    problem = made(kind)
    truth, order, told = _dense(problem, patterns, damping), _order(problem.n), []
    assert (truth >= 0).all()
    monkeypatch.setattr(self_influence, "BYTES_AT_ONCE", at_once)
    for size in (1, 7, 1000):
        found = last_layer_self(problem.objective(size), problem.theta, damping, patterns)
        torch.testing.assert_close(found, truth, **CLOSE)
    moved = problem.objective(order=order)
    found = last_layer_self(moved, problem.theta, damping, patterns, lambda *far: told.append(far))
    torch.testing.assert_close(found, truth[order], **CLOSE)
    assert (found >= 0).all()
    assert told[-1] == (problem.n, problem.n)


def test_it_says_why_it_takes_the_general_path(caplog):
    problem = made(Attention)
    with caplog.at_level(logging.INFO, "ifloo.attribution.self_influence"):
        last_layer_self(problem.objective(), problem.theta, 3.0, ("embed.weight", "head.weight"))
    assert [r.message for r in caplog.records if r.name == "ifloo.attribution.self_influence"] == [
        "self-influence: Hessian, by products. A linear head is the weight (and bias) of one nn.Linear; attributed are "
        "['embed.weight', 'head.weight']."
    ]


def test_an_indefinite_hessian_is_refused():
    problem = made(Attention)
    with pytest.raises(SolveError):
        last_layer_self(problem.objective(), problem.theta, 0.0, ("embed.*",))


@pytest.mark.parametrize("kind", [Logistic, Attention], ids=lambda k: k.__name__)
def test_tracin_self(kind):
    problem, told = made(kind), []
    truth = torch.zeros(problem.n, dtype=torch.float64)
    for step, (ids, rate) in enumerate(zip(BATCHES, RATES.tolist(), strict=True)):
        _, G = gradients(problem, states(kind)[ENDS[step]])
        for i in ids:
            truth[i] += rate / len(ids) * G[i] @ G[i]
    for size in (1, 7, 1000):
        found = tracin_self(trained(kind, size), tick=lambda *far: told.append(far))
        torch.testing.assert_close(found, truth, **CLOSE)
    order = _order(problem.n)
    torch.testing.assert_close(tracin_self(trained(kind, order=order)), truth[order], **CLOSE)
    assert told[-1] == (3 * problem.n, 3 * problem.n)


def test_tracin_self_needs_the_run_and_a_state():
    problem = made(Logistic)
    with pytest.raises(InputError) as caught:
        tracin_self(TrainedModel(problem.objective(), problem.theta))
    assert str(caught.value) == (
        "Self-influence by TracIn follows the training run, and this model comes without one.\n"
        f"  {HOW_TO_RECORD}; or use a method that looks at the final weights alone, such as GradientDot."
    )
    with pytest.raises(InputError) as caught:
        tracin_self(trained(Logistic), checkpoints=0)
    assert str(caught.value) == "TracIn needs checkpoints >= 1 (or null, for all that were saved), got 0."


@pytest.mark.parametrize("kind", [Logistic, Attention], ids=lambda k: k.__name__)
def test_loss_ranking(kind):
    problem, told = made(kind), []
    truth, order = problem.losses_at(problem.theta, problem.x, problem.labels).detach(), _order(problem.n)
    found = loss_ranking(problem.objective(5), problem.theta, lambda *far: told.append(far))
    torch.testing.assert_close(found, truth, **CLOSE)
    torch.testing.assert_close(loss_ranking(problem.objective(order=order), problem.theta), truth[order], **CLOSE)
    assert told[-1] == (problem.n, problem.n)
