"""A layer that is registered twice, and tied weights, are those of the user after scoring too."""

import lightning as L
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from ifloo.models import Adapted
from ifloo.objective import Objective, preflight, scoring


class Shared(L.LightningModule):
    """Keeps its backbone under two names, and ties the weights of two other layers."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Linear(3, 4, dtype=torch.float64)
        self.head = nn.Linear(4, 3, dtype=torch.float64)
        self.net = nn.Sequential(self.backbone, nn.Tanh(), self.head)
        self.tied = nn.Linear(4, 3, dtype=torch.float64)
        self.tied.weight = self.head.weight

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self.net(x) + self.tied(self.backbone(x)), y)


def test_scoring_leaves_a_module_that_is_registered_twice_as_it_was():
    torch.manual_seed(0)
    module, data = Shared(), TensorDataset(torch.randn(9, 3, dtype=torch.float64), torch.arange(9) % 3)
    before = [(p, p.detach().clone()) for p in module.parameters()]
    objective = Objective.of(Adapted(module), DataLoader(data, batch_size=4))
    theta = objective.losses.theta()
    with scoring(objective.losses.module):
        preflight(objective, theta)
        slope = objective.gradient(theta)
        moved = objective.value(theta + 0.2)
    assert all(
        p is kept and torch.equal(p, value) for p, (kept, value) in zip(module.parameters(), before, strict=True)
    )
    exact = torch.autograd.grad(module.training_step(data.tensors, 0), list(module.parameters()))
    torch.testing.assert_close(slope, torch.cat([g.flatten() for g in exact]), rtol=1e-12, atol=1e-14)
    with torch.no_grad():
        for p in module.parameters():
            p += 0.2
    torch.testing.assert_close(moved, module.training_step(data.tensors, 0).detach(), rtol=1e-12, atol=1e-14)
