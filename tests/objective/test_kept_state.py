"""What passes change in a user's layers is as before afterwards: lists, counters, buffers, in every way of scoring."""

from collections import deque

import pytest
import torch
import torchmetrics
from torch import nn
from torch.func import vmap

from ifloo.objective.functional import scoring
from ifloo.objective.silence import silenced

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


class Body(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin, self.norms = nn.Linear(4, 1), []

    def forward(self, x):
        z = self.lin(x)
        self.norms.append(z.norm())
        return z


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.losses, self.by_name, self.recent = Body(), [1.0], {}, deque([2.0], maxlen=2)
        self.long, self.calls, self.mean = [0.0] * 5000, 3, 0.5
        self.register_buffer("ticks", torch.ones(2))
        self.kept = torch.zeros(3)
        self.acc = torchmetrics.MeanMetric()

    def forward(self, x):
        loss = self.body(x).square().mean()
        self.losses.append(loss)
        self.by_name["loss"] = loss
        self.recent.append(loss)
        self.long.append(loss)
        self.calls += 1
        self.mean = self.mean * 0.9
        self.ticks += 1
        self.kept = self.kept + 1
        self.acc.update(loss)
        return loss


PASSES = {"plain": lambda net: net(X), "vmap": lambda net: vmap(lambda x: net(x[None]))(X)}


@pytest.mark.parametrize("form", PASSES)
def test_scoring_leaves_a_module_as_it_was(form):
    net = Net()
    objects = (net.losses, net.by_name, net.recent, net.long, net.ticks, net.kept, net.body.norms)
    with scoring(net):
        for _ in range(2):
            PASSES[form](net)
    assert objects == (net.losses, net.by_name, net.recent, net.long, net.ticks, net.kept, net.body.norms)
    assert (net.losses, net.by_name, list(net.recent), net.body.norms) == ([1.0], {}, [2.0], [])
    assert net.long == [0.0] * 5000
    assert (net.calls, net.mean) == (3, 0.5)
    assert (net.ticks.tolist(), net.kept.tolist()) == ([1.0, 1.0], [0.0, 0.0, 0.0])


def test_nothing_is_kept_from_one_pass_to_the_next():
    net = Net()
    with scoring(net):
        for _ in range(3):
            with silenced(net):
                net(X)
                assert len(net.losses) == 2
        assert len(net.losses) == 1


def test_within_a_fit_lists_and_metrics_take_part():
    net = Net()
    with silenced(net, updates=True):
        loss = net(X)
    assert net.losses == [1.0, loss]
    assert net.acc.compute() == loss
    assert "forward" not in vars(net.acc)
    net.acc.update(0.0)
    assert net.acc.compute() == pytest.approx(loss.item() / 2)


def test_within_a_fit_metrics_are_silent_inside_transforms():
    net = Net()
    net.acc.update(3.0)
    with silenced(net, updates=True):
        vmap(lambda x: net.acc(x.sum()))(X)
    assert net.acc.compute() == 3
