"""Second derivatives are those of plain operations, also where a step differentiates or torch's own are wrong."""

import lightning as L
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from ifloo.curvature import Hessian, dense
from ifloo.models import Adapted
from ifloo.objective import Objective, preflight, scoring
from ifloo.objective.functional import Path

D = torch.float64
N = 12
ROUNDING = 1e-13  # of the largest entry


def features(d, seed=0):
    return torch.randn(N, d, generator=torch.Generator().manual_seed(seed), dtype=D)


class Module(L.LightningModule):
    """A module with its own loss of a batch, and the same loss in operations whose derivatives are known."""

    def plain(self, batch):
        return self.training_step(batch, 0)


class Physics(Module):
    """Satisfies u'' + u = 0: the step takes derivatives of the network in its input."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 4, dtype=D), nn.Tanh(), nn.Linear(4, 1, dtype=D))

    def training_step(self, batch, batch_idx):
        t = batch[0].clone().requires_grad_()
        u = self.net(t)
        (slope,) = torch.autograd.grad(u, t, torch.ones_like(u), create_graph=True)
        (second,) = torch.autograd.grad(slope, t, torch.ones_like(slope), create_graph=True)
        return (second + u).square().mean() + (u - t.cos()).square().mean()


class Recomputed(Module):
    """Stores no activations of its body."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4, dtype=D), nn.GELU(), nn.Linear(4, 3, dtype=D))
        self.head = nn.Linear(3, 3, dtype=D)

    def training_step(self, batch, batch_idx):
        x = batch[0]
        return F.cross_entropy(self.head(x + checkpoint(self.body, x, use_reentrant=False)), batch[1])

    def plain(self, batch):
        return F.cross_entropy(self.head(batch[0] + self.body(batch[0])), batch[1])


class Normed(Module):
    """Trains direction and length of its weights apart, by the present parametrization or the former hook."""

    def __init__(self, norm):
        super().__init__()
        self.lin = norm(nn.Linear(3, 3, dtype=D))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.lin(batch[0]), batch[1])

    def plain(self, batch):
        length, direction, bias = (dict(self.named_parameters())[name] for name in self.parts)
        weight = length * direction / direction.norm(dim=1, keepdim=True)
        return F.cross_entropy(batch[0] @ weight.T + bias, batch[1])

    @property
    def parts(self):
        names = [name for name, _ in self.named_parameters()]
        return [next(n for n in names if n.endswith(end)) for end in (("original0", "_g"), ("original1", "_v"), "bias")]


class Clicked(Module):
    """Converts labels to 32 bits in a module of 64."""

    def __init__(self):
        super().__init__()
        self.body, self.out = nn.Linear(3, 4, dtype=D), nn.Linear(4, 1, dtype=D)

    def training_step(self, batch, batch_idx):
        z = self.out(torch.tanh(self.body(batch[0])))
        return F.binary_cross_entropy_with_logits(z, (batch[1] > 1).view(-1, 1).float())

    def plain(self, batch):
        z, y = self.out(torch.tanh(self.body(batch[0]))), (batch[1] > 1).view(-1, 1).to(D)
        return (F.softplus(z) - y * z).mean()


CASES = {
    "derivatives in the step": (Physics, Path.LOOP),
    "checkpointing": (Recomputed, Path.LOOP),
    "weight norm": (lambda: Normed(nn.utils.parametrizations.weight_norm), Path.FORWARD),
    "weight norm by a hook": (lambda: Normed(nn.utils.weight_norm), Path.FORWARD),
    "labels of 32 bits": (Clicked, Path.FORWARD),
}


def exact(module, data):
    """Returns ∇²J by double backward through the losses of single samples in plain operations."""
    parameters = list(module.parameters())
    losses = torch.stack([module.plain([part[i : i + 1] for part in data.tensors]) for i in range(N)])
    slope = torch.cat([g.flatten() for g in torch.autograd.grad(losses.mean(), parameters, create_graph=True)])
    rows = [torch.autograd.grad(one, parameters, retain_graph=True, materialize_grads=True) for one in slope]
    return torch.stack([torch.cat([part.flatten() for part in row]) for row in rows]).detach()


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of the former hook
@pytest.mark.parametrize("name", CASES)
def test_products_with_the_hessian_are_those_of_plain_operations(name):
    make, path = CASES[name]
    torch.manual_seed(1)
    module = make()
    data = TensorDataset(features(1 if name == "derivatives in the step" else 3), torch.arange(N) % 3)
    objective = Objective.of(Adapted(module), DataLoader(data, batch_size=4))
    assert objective.losses.path is path
    theta = objective.losses.theta()
    with scoring(objective.losses.module):
        preflight(objective, theta)
        found = dense(Hessian(objective, theta))
    H = exact(module, data)
    assert (found - H).abs().max() <= ROUNDING * H.abs().max()


def test_losses_stated_as_a_function_may_differentiate_too():
    torch.manual_seed(1)
    module, data = Physics(), TensorDataset(features(1), torch.arange(N) % 3)

    def losses(model, batch):
        t = batch[0].clone().requires_grad_()
        u = model.net(t)
        (slope,) = torch.autograd.grad(u, t, torch.ones_like(u), create_graph=True)
        (second,) = torch.autograd.grad(slope, t, torch.ones_like(slope), create_graph=True)
        return ((second + u).square() + (u - t.cos()).square()).flatten()

    objective = Objective.of(Adapted(module, losses), DataLoader(data, batch_size=4))
    theta = objective.losses.theta()
    with scoring(objective.losses.module):
        preflight(objective, theta)
        found = dense(Hessian(objective, theta))
    H = exact(module, data)
    assert (found - H).abs().max() <= ROUNDING * H.abs().max()
