"""Chord replicas against refits one by one and against an independent solver; what they leave to other paths."""

import copy
import re
from dataclasses import replace
from functools import cache

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from ifloo.models import LogisticRegression, SampleLossModule
from ifloo.objective import SampleWeights
from ifloo.params import ParamSpace
from ifloo.refit import NewtonFinish, Refitter, TrainerSettings
from ifloo.refit.strategies import ChordReplicas, StrategyError
from ifloo.refit.strategies.base import OneByOne, RefitTask
from ifloo.solvers import Nystrom
from tests.problems import Samples

N, D, C = 120, 6, 3
TIGHT = 1e-13  # of ‖∇J‖: two ends differ by less than 2 TIGHT / λ = 1e-11 in θ
SAME = {"rtol": 0, "atol": 1e-9}


@cache
def _data(dead: bool = False):
    draw = torch.Generator().manual_seed(21)
    x = torch.randn(N, D, generator=draw, dtype=torch.float64)
    if dead:
        x[:, 2] = 0
    truth = torch.randn(C, D, generator=draw, dtype=torch.float64)
    y = (x @ truth.T + torch.randn(N, C, generator=draw, dtype=torch.float64)).argmax(1)
    return Samples(x, y)


def _refitter(module, data=None, tolerance=TIGHT, after="lbfgs", fitted=True, size=N):
    """Of a module at its minimum, found by the same recipe."""

    def loader():
        return DataLoader(data or _data(), batch_size=size)

    finish = NewtonFinish(after=after, tolerance=tolerance, preconditioner=Nystrom(rank=5), batch_size=50)
    recipe = TrainerSettings(max_epochs=1, accelerator="cpu")
    if fitted:
        module = Refitter(lambda: module, loader, recipe, finish, 0).fit().module
    return Refitter(lambda: copy.deepcopy(module), loader, recipe, finish, 0)


@cache
def _logistic(bias=False, dead=False):
    return _refitter(LogisticRegression(D, C, bias=bias, l2_reg=0.02, tolerance_grad=1e-4), _data(dead))


def _queries():
    draw = torch.Generator().manual_seed(22)
    x = torch.randn(20, D, generator=draw, dtype=torch.float64)
    return {"x": x, "labels": torch.randint(C, (20,), generator=draw)}


def _losses(refits):
    return torch.stack([r.module.sample_losses(_queries()).detach() for r in refits])


def _tasks(removal, groups):
    return [RefitTask(SampleWeights.removing(ids, removal, N)) for ids in groups]


@pytest.mark.parametrize("dead", [False, True], ids=["", "dead input"])
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("removal", ["drop", "zero_weight"])
def test_replicas_end_where_refits_one_by_one_and_newton_do(removal, bias, dead):
    how = _logistic(bias, dead)
    tasks = [RefitTask(), *_tasks(removal, [[0], [7], [N - 1], [3, 5, 8]])]
    many, single = ChordReplicas(how, 3).fit(tasks), OneByOne(how).fit(tasks)
    torch.testing.assert_close(_losses(many), _losses(single), **SAME)
    for a, b in zip(many, single, strict=True):
        assert a.minimum.grad_norm <= TIGHT
        assert a.minimum.value == pytest.approx(b.minimum.value, abs=1e-13)
        assert torch.equal(a.minimum.theta, ParamSpace.of(a.module).values_of(a.module))
    truth = _newton(how.start(), how.loader(), tasks[1].weights)
    space = ParamSpace.of(many[1].module)
    torch.testing.assert_close(space.values_of(many[1].module), truth, **SAME)


def _newton(module, loader, weights):
    """The minimiser by dense Newton on plain autograd: no code of refits."""
    batch = next(iter(loader))
    space = ParamSpace.of(module)
    w = weights.of(batch["idx"], torch.float64)

    def value(theta):
        return torch.func.functional_call(_Loss(module), _named(space, theta), (batch, w))

    theta = space.values_of(module)
    for _ in range(8):
        g = torch.autograd.functional.jacobian(value, theta)
        theta = theta - torch.linalg.solve(torch.autograd.functional.hessian(value, theta), g)
    return theta


def _named(space, theta):
    return {f"module.{k}": v for k, v in space.unflatten(theta).items()}


class _Loss(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, batch, w):
        return (w * self.module.sample_losses(batch)).mean() + self.module.penalty()


def test_a_displaced_start_comes_back():
    how = _logistic()
    path = ChordReplicas(how, 8)
    steps = path.removal_steps(how.start(), 3, seed=0)
    assert (steps.norm(dim=1) > 1e-4).all()
    refits = path.fit([RefitTask(displacement=step) for step in steps])
    assert all(0 < r.minimum.grad_norm <= TIGHT and r.minimum.steps > 1 for r in refits)
    torch.testing.assert_close(_losses(refits), _losses(OneByOne(how).fit([RefitTask()])).expand(3, -1), **SAME)


def test_first_steps_are_those_of_the_general_solver():
    """The steps that displace null refits, against the inverse-HVP of the plain path, whose residual is 1e-3."""
    how = _logistic()
    path = ChordReplicas(how, 8)
    step = path.removal_steps(how.start(), 2, seed=0)
    how.finish.prepare(how.start(), how.loader())
    plain = OneByOne(how).removal_steps(how.start(), 2, seed=0)
    residual, whole = path.head.streamed(step - plain), path.head.streamed(step)
    assert (residual.norm(dim=1) <= 1e-3 * whole.norm(dim=1)).all()


def test_number_at_once_does_not_show():
    how = _logistic()
    tasks = _tasks("drop", [[i] for i in range(7)])
    one, seven = ChordReplicas(how, 1), ChordReplicas(how, 7)
    torch.testing.assert_close(_losses(one.fit(tasks)), _losses(seven.fit(tasks)), rtol=0, atol=1e-11)


def test_memory_that_does_not_hold_them_holds_half(caplog, monkeypatch):
    how = _logistic()
    path = ChordReplicas(how, 4)
    train = path._train

    def small(tasks):
        if len(tasks) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return train(tasks)

    monkeypatch.setattr(path, "_train", small)
    refits = path.fit(_tasks("drop", [[i] for i in range(4)]))
    assert len(refits) == 4
    assert path.max_at_once == 2
    assert (
        caplog.messages.count(
            "out of memory with 4 replicas at once (DefaultCPUAllocator: can't allocate memory): going on with 2."
        )
        == 1
    )


def test_what_the_chord_does_not_reach_is_fitted_one_by_one(caplog, monkeypatch):
    """Half of all samples removed: the base Hessian is no good there."""
    how = _logistic()
    monkeypatch.setattr("ifloo.refit.strategies.chord_module.SLOWEST_FALL", 1e-6)
    caplog.set_level("INFO", "ifloo")
    task = _tasks("drop", [list(range(0, 60))])
    refits = ChordReplicas(how, 2).fit(task)
    assert any(m.startswith("chord Newton does not converge for ids [0, 1, 2") for m in caplog.messages)
    torch.testing.assert_close(_losses(refits), _losses(OneByOne(how).fit(task)), **SAME)


class Mlp(SampleLossModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(D, 4), nn.Tanh(), nn.Linear(4, C)).double()

    def sample_losses(self, batch):
        return nn.functional.cross_entropy(self.net(batch["x"]), batch["labels"], reduction="none")

    def penalty(self):
        return 0.05 * sum(p.square().sum() for p in self.parameters())

    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), max_iter=500, tolerance_grad=1e-9, line_search_fn="strong_wolfe")


REFUSED = {
    "another optimizer": (
        lambda: _refitter(LogisticRegression(D, C, optimizer="sgd"), fitted=False),
        r"SGD fits are not finished to the minimum \(finish.after = lbfgs\)",
    ),
    "never finished": (
        lambda: _refitter(LogisticRegression(D, C), after="never", fitted=False),
        r"fits are not finished to the minimum \(finish.after = never\)",
    ),
    "from scratch": (
        lambda: _refitter(LogisticRegression(D, C), fitted=False),
        r"refits start at \|grad J\| = \S+, not at the minimum of the base model",
    ),
    "more than a head": (
        lambda: _refitter(Mlp(), tolerance=1e-6),
        r"A linear head is the weight \(and bias\) of one nn.Linear; attributed are \['net.0.weight', .*",
    ),
}


@pytest.mark.parametrize(("make", "text"), REFUSED.values(), ids=REFUSED)
def test_what_it_leaves_to_other_paths(make, text):
    with pytest.raises(StrategyError) as caught:
        ChordReplicas(make())
    assert re.fullmatch(text, str(caught.value))


def test_it_leaves_an_end_of_its_own_to_refits_one_by_one():
    finish = type("Measuring", (NewtonFinish,), {"end_fit": lambda *_: None})("always")
    with pytest.raises(StrategyError, match=r"^Measuring overrides end_fit, which chord Newton would not call$"):
        ChordReplicas(replace(_logistic(), finish=finish))


def test_a_factor_that_costs_more_than_it_saves_is_made_only_when_asked_for():
    torch.manual_seed(3)
    few = Samples(torch.randn(12, 200, dtype=torch.float64), torch.arange(12) % 10)
    how = _refitter(LogisticRegression(200, 10, l2_reg=0.1), few, 1e-12, size=12)
    with pytest.raises(StrategyError, match=r"^a factor of q = 1,800 costs as much as \d+ refits one by one$"):
        ChordReplicas(how)
    assert ChordReplicas(how, 2).max_at_once == 2


def test_random_numbers_are_left_as_they_were():
    how = _logistic()
    path = ChordReplicas(how, 2)
    L.seed_everything(5, verbose=False)
    before = torch.get_rng_state()
    path.fit(_tasks("drop", [[1]]))
    assert torch.equal(torch.get_rng_state(), before)
