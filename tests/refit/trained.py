"""Small networks and their refitters, for comparing stacked replicas with single fits."""

import functools

import torch
from torch import nn, optim
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from ifloo.models import SampleLossModule
from ifloo.objective.loaders import identified
from ifloo.refit import NewtonFinish, Refitter, TrainerSettings
from tests.problems import AttentionModel

N, D, C = 24, 6, 3
SGD = functools.partial(optim.SGD, lr=0.1, momentum=0.9)
REMOVED = [0, 5, 11, 17, 23]


def dataset(ids: bool = False) -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(N, D, generator=generator, dtype=torch.float64)
    tensors = (x, torch.randint(C, (N,), generator=generator))
    return TensorDataset(*tensors, *([torch.arange(100, 100 + N)] if ids else []))


class InSevens:
    """A batch sampler that inherits from none of torch's, around a sampler."""

    batch_size = 7

    def __init__(self, sampler):
        self.sampler = sampler

    def __iter__(self):
        rows = list(self.sampler)
        return (rows[start : start + self.batch_size] for start in range(0, len(rows), self.batch_size))

    def __len__(self):
        return -(-N // self.batch_size)


class Trained(SampleLossModule):
    """A network under the contract, with an optimizer and optionally a schedule of it."""

    def __init__(self, network, optimizer=SGD, schedule=None):
        super().__init__()
        self.network, self.optimizer, self.schedule = network, optimizer, schedule

    def sample_losses(self, batch):
        return F.cross_entropy(self.network(batch[0]), batch[1], reduction="none")

    def penalty(self):
        return 0.01 * torch.stack([p.square().sum() for p in self.network.parameters()]).sum()

    def configure_optimizers(self):
        optimizer = self.optimizer(self.parameters())
        return [optimizer], [self.schedule(self, optimizer)] if self.schedule else []


def perceptron(*between: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(D, 5), *between, nn.Tanh(), nn.Linear(5, C)).double()


class Reading(nn.Module):
    """A network that reads six numbers as two tokens of three: embedding, layer_norm and fused attention."""

    def __init__(self):
        super().__init__()
        self.model = AttentionModel(0.0)

    def forward(self, x):
        return self.model(x.reshape(-1, 2, 3))


class Tied(nn.Module):
    """A network with a tied weight, a frozen bias, a buffer, and an unused parameter."""

    def __init__(self):
        super().__init__()
        self.first, self.second = (nn.Linear(D, D, dtype=torch.float64) for _ in range(2))
        self.second.weight = self.first.weight
        self.second.bias.requires_grad_(False)
        self.unused = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.register_buffer("scale", torch.linspace(0.5, 1.5, D, dtype=torch.float64))

    def forward(self, x):
        return self.second(torch.tanh(self.first(x * self.scale)))[:, :C]


def refitter(model, shuffle=False, data=None, init="warm", after="lbfgs", **settings):
    """Builds a refitter of `model()`; warm refits all start from one such model, cold ones each from a new one."""
    torch.manual_seed(3)
    state = model().state_dict()

    def start():
        module = model()
        if init == "warm":
            module.load_state_dict(state)
        return module

    data = data or dataset()
    ids = "third" if len(data[0]) == 3 else "auto"
    return Refitter(
        start=start,
        loader=lambda: identified(DataLoader(data, batch_size=7, shuffle=shuffle), ids),
        trainer_settings=TrainerSettings(**({"max_epochs": 4, "accelerator": "cpu"} | settings)),
        finish=NewtonFinish(after),
        seed=0,
    )
