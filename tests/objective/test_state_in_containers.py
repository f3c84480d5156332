"""Tensors that a step changes in place have right products with the Hessian, wherever a layer keeps them."""

import lightning as L
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from ifloo.curvature import Hessian
from ifloo.models import Adapted
from ifloo.objective import Objective
from ifloo.objective.functional import scoring

D = torch.float64
ROWS = TensorDataset(torch.randn(12, 3, dtype=D, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 2)


class Running(L.LightningModule):
    """A mean of activations that every step moves in place and multiplies by."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 4, dtype=D), nn.Linear(4, 2, dtype=D)
        self.keep(torch.ones(4, dtype=D))

    def keep(self, mean):
        self.mean = mean

    def kept(self):
        return self.mean

    def training_step(self, batch, _):
        h = torch.tanh(self.first(batch[0]))
        mean = self.kept()
        mean.mul_(0.5).add_(0.5 * h.detach().mean(0))
        return F.cross_entropy(self.last(h * mean), batch[1])


class InDict(Running):
    def keep(self, mean):
        self.state = {"mean": mean}

    def kept(self):
        return self.state["mean"]


class InList(Running):
    def keep(self, mean):
        self.state = [mean]

    def kept(self):
        return self.state[0]


class Nested(Running):
    def keep(self, mean):
        self.mean, self.state = mean, ({"means": [mean]},)

    def kept(self):
        assert self.state[0]["means"][0] is self.mean  # one tensor of two names
        return self.mean


class Truth(Running):
    def kept(self):
        return torch.ones(4, dtype=D)


def hessian(kind):
    torch.manual_seed(0)
    net = kind()
    objective = Objective.of(Adapted(net), DataLoader(ROWS, batch_size=4))
    theta = objective.losses.theta()
    with scoring(objective.losses.module):
        found = Hessian(objective, theta).matmat(torch.eye(len(theta), dtype=D))
    return net, found


@pytest.mark.parametrize("kind", [Running, InDict, InList, Nested])
def test_a_tensor_changed_in_place(kind):
    net, found = hessian(kind)
    _, truth = hessian(Truth)
    torch.testing.assert_close(found, truth, rtol=1e-12, atol=1e-14)
    assert torch.equal(net.kept(), torch.ones(4, dtype=D))
