"""Products with the Hessian are held to central differences of the gradient that training follows."""

import logging
import re
from dataclasses import replace

import lightning as L
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from ifloo.attribution import GradientDot, InfluenceFunction
from ifloo.curvature import Hessian
from ifloo.models import Adapted
from ifloo.objective import Objective
from ifloo.objective.gradient_field import SYMMETRIC
from ifloo.stages.certificate.examined_run import objective_certificate
from ifloo.stages.certificate.run_certificate import CertificateRequest

D = torch.float64
N = 24


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return -0.7 * gradient


class _ConstantSquare(torch.autograd.Function):
    """x², whose backward pass is right and holds x as a constant."""

    @staticmethod
    def forward(ctx, x):
        ctx.x = x.detach()
        return x.square()

    @staticmethod
    def backward(ctx, gradient):
        return 2 * ctx.x * gradient


class _Base(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 5)
        self.head = nn.Linear(5, 3)

    def hidden(self, x):
        return torch.tanh(self.body(x))

    def training_step(self, batch, _):
        return F.cross_entropy(self.head(self.hidden(batch[0])), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Reversal(_Base):
    def __init__(self):
        super().__init__()
        self.domain = nn.Linear(5, 2)

    def training_step(self, batch, i):
        domain = F.cross_entropy(self.domain(_Reverse.apply(self.hidden(batch[0]))), (batch[0][:, 0] > 0).long())
        return super().training_step(batch, i) + domain


class IncompleteSecondDerivative(_Base):
    def hidden(self, x):
        return _ConstantSquare.apply(super().hidden(x))


class ClippedByHook(_Base):
    def hidden(self, x):
        h = super().hidden(x)
        if h.requires_grad:
            h.register_hook(lambda g: g * (1 + 10 * g.square()))
        return h


class Stopped(_Base):
    def training_step(self, batch, i):
        losses = F.cross_entropy(self.head(self.hidden(batch[0])), batch[1], reduction="none")
        return ((1 - (-losses.detach()).exp()) * losses).mean()


class Relu(_Base):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 300), nn.ReLU(), nn.Linear(300, 300), nn.ReLU(), nn.Linear(300, 5))

    def hidden(self, x):
        return self.body(x).relu()


class MaxPool(_Base):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv1d(1, 40, 3, padding=1), nn.ReLU(), nn.MaxPool1d(2), nn.Flatten())
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(80, 3))

    def hidden(self, x):
        return self.body(x[:, None])


class Recurrent(_Base):
    def __init__(self):
        super().__init__()
        self.body = nn.LSTM(1, 5, batch_first=True)

    def hidden(self, x):
        return self.body(x[..., None])[0][:, -1]


class Lasso(_Base):
    def training_step(self, batch, i):
        return super().training_step(batch, i) + 0.01 * self.head.weight.abs().sum() + 0.01 * self.head.bias.abs().sum()


class LossInFloat32(_Base):
    def training_step(self, batch, _):
        return F.cross_entropy(self.head(self.hidden(batch[0])).float(), batch[1])


class FixedFloat32(_Base):
    def hidden(self, x):
        return super().hidden(x) + F.linear(torch.ones(1, 5), self.head.weight.T @ self.head.weight)


def certificate(net, dtype=D, parameters=("*",), curved=True):
    torch.manual_seed(0)
    x = torch.randn(N, 4, dtype=dtype)
    module = net().to(dtype)
    with torch.no_grad():
        for p in module.parameters():
            if p.ndim == 1:
                p.zero_()  # as many initialisations do: a kink of |p| lies here
    loader = DataLoader(
        TensorDataset(x, torch.arange(N) % 3), batch_size=1
    )  # a hook that is not linear gives batches of several another gradient
    request = CertificateRequest.of(Adapted(module), loader, parameters)
    return objective_certificate(replace(request, curved=curved)).certificate


def jacobian(net):
    """Returns the derivative of the training gradient of all parameters, by Richardson's central differences."""
    torch.manual_seed(0)
    x, y = torch.randn(N, 4, dtype=D), torch.arange(N) % 3
    module = net().to(D)
    with torch.no_grad():
        for p in module.parameters():
            if p.ndim == 1:
                p.zero_()
    parameters = list(module.parameters())
    theta = nn.utils.parameters_to_vector(parameters).detach()

    def gradient(at):
        nn.utils.vector_to_parameters(at, parameters)
        found = torch.autograd.grad(
            sum(module.training_step((x[i : i + 1], y[i : i + 1]), 0) for i in range(N)) / N, parameters
        )
        return torch.cat([g.reshape(-1) for g in found])

    columns = []
    for e in torch.eye(len(theta), dtype=D):
        d = [(gradient(theta + h * e) - gradient(theta - h * e)) / (2 * h) for h in (1e-3, 5e-4)]
        columns.append((4 * d[1] - d[0]) / 3)
    return torch.stack(columns, 1)


@pytest.mark.parametrize(
    ("net", "cause"),
    [
        (Reversal, r"\(_Reverse: a backward pass of its own\)"),
        (IncompleteSecondDerivative, r"\(_ConstantSquare: a backward pass of its own\)"),
        (ClippedByHook, r"\(a tensor hook: a backward pass of its own\)"),
        (Stopped, r"\(a part of the loss that passes no gradient, or "),
    ],
)
@pytest.mark.parametrize("dtype", [D, torch.float32])
def test_products_that_are_not_the_derivative_of_the_training_gradient_are_named(net, cause, dtype, caplog):
    with caplog.at_level(logging.WARNING):
        found = certificate(net, dtype)
    assert "products with the Hessian (double backward) differ by " in found.note
    assert re.search(cause, found.note)
    assert found.note in caplog.text
    assert found.note in found.record()["text"]


@pytest.mark.parametrize("net", [_Base, Relu, MaxPool, Recurrent, Lasso, LossInFloat32, FixedFloat32])
@pytest.mark.parametrize("dtype", [D, torch.float32])
def test_kinks_and_rounding_are_no_difference(net, dtype):
    if net is FixedFloat32 and dtype is D:
        pytest.skip("does not run in float64")
    assert "Hessian" not in certificate(net, dtype).note


class Overfitted(_Base):
    """Fits its samples to the last digits of float32, in which its loss is taken."""

    def __init__(self):
        super().__init__()
        width = 128
        self.net = nn.Sequential(
            *(nn.Linear(10, width), nn.GELU(), nn.Linear(width, width), nn.GELU()),
            *(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 3)),
        )

    def training_step(self, batch, _):
        return F.cross_entropy(self.net(batch[0]).float(), batch[1])


def test_a_curvature_below_the_rounding_of_the_loss_is_no_difference():
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(16, 10), torch.randint(0, 3, (16,)))
    module = Overfitted()
    fit = torch.optim.Adam(module.parameters(), lr=0.01)
    for _ in range(300):
        fit.zero_grad()
        module.training_step(data.tensors, 0).backward()
        fit.step()
    request = CertificateRequest.of(Adapted(module), DataLoader(data, batch_size=16, shuffle=True))
    assert "Hessian" not in objective_certificate(request).certificate.note


def test_scores_without_second_derivatives_have_no_note_on_them():
    assert not GradientDot().uses_curvature
    assert InfluenceFunction("hessian", Hessian).uses_curvature
    assert "Hessian" not in certificate(Reversal, curved=False).note


def test_layers_behind_a_reversal_have_right_products():
    assert "Hessian" not in certificate(Reversal, parameters=("head.*",)).note
    assert "Hessian" in certificate(Reversal, parameters=("body.*",)).note


def test_a_field_that_is_no_gradient_is_not_symmetric():
    J = jacobian(ClippedByHook)
    assert (J - J.T).norm() > SYMMETRIC * J.norm()
    assert "and are not symmetric" in certificate(ClippedByHook).note


@pytest.mark.parametrize(("net", "cause"), [(Reversal, "_Reverse"), (Stopped, "a part of the loss passes no gradient")])
def test_the_note_on_a_gradient_that_is_no_derivative_names_its_cause(net, cause):
    torch.manual_seed(0)
    data = DataLoader(TensorDataset(torch.randn(N, 4, dtype=D), torch.arange(N) % 3), batch_size=8)
    (*_, note) = Objective.of(Adapted(net().to(D)), data).losses.notes
    assert cause in note
    assert ("passes no gradient" in note) == (net is Stopped)
