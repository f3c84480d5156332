"""Weights with a domain, such as a scale or a covariance: no probe of ours makes the user's code fail outside of it."""

from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, Normal
from torch.utils.data import DataLoader, TensorDataset

from ifloo.models import Adapted
from ifloo.objective import Objective
from ifloo.objective.functional import scoring
from ifloo.objective.logits_layer import NoLogitsLayerError, first_sample, logits_layer
from ifloo.objective.preflight import preflight

ROWS = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
COVARIANCE = torch.tensor([[2.0, 0.3, 0.1], [0.3, 1.0, 0.2], [0.1, 0.2, 0.5]])


class Density(L.LightningModule):
    """Rows of a distribution whose shape is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(3))
        self.shape = nn.Parameter(self.start())

    def start(self) -> Tensor:
        return torch.eye(3)

    def log_density(self, x: Tensor) -> Tensor:
        return MultivariateNormal(self.mean, scale_tril=self.shape.tril()).log_prob(x)

    def training_step(self, batch: Any, _: int) -> Tensor:
        return -self.log_density(batch[0]).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Factorised(Density):
    def start(self) -> Tensor:
        return COVARIANCE

    def log_density(self, x: Tensor) -> Tensor:
        factor = torch.linalg.cholesky(self.shape)
        z = torch.linalg.solve_triangular(factor, (x - self.mean).T, upper=False)
        return -0.5 * z.square().sum(0) - factor.diagonal().log().sum()


class Determinant(Factorised):
    """No exception outside of the domain, but no number either."""

    def log_density(self, x: Tensor) -> Tensor:
        x = x - self.mean
        return -0.5 * (x @ self.shape * x).sum(1) + 0.5 * torch.logdet(self.shape)


class Scales(Density):
    def start(self) -> Tensor:
        return torch.tensor([0.1, 1.0, 3.0])

    def log_density(self, x: Tensor) -> Tensor:
        return Normal(self.mean, self.shape).log_prob(x).sum(1)


KINDS = [Density, Factorised, Determinant, Scales]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_is_measured_within_the_domain(kind: type[Density], dtype: torch.dtype) -> None:
    net, rows = kind().to(dtype), ROWS.to(dtype)
    objective = Objective.of(Adapted(net), DataLoader(TensorDataset(rows), batch_size=8))
    theta = objective.losses.theta()
    with scoring(objective.losses.module):
        preflight(objective, theta)
        value, gradient = objective.value_and_gradient(theta)
    net.training_step([rows], 0).backward()  # type: ignore[no-untyped-call]
    assert net.mean.grad is not None
    assert net.shape.grad is not None
    truth = torch.cat([net.mean.grad, net.shape.grad.reshape(-1)])
    assert torch.allclose(gradient, truth, rtol=0, atol=1e2 * torch.finfo(dtype).eps * float(truth.abs().max()))
    assert torch.isfinite(value)


class Regressed(Density):
    """The mean is that of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def training_step(self, batch: Any, _: int) -> Tensor:
        self.__dict__["mean"] = self.layer(batch[0])
        return super().training_step(batch, _)


class RegressedScales(Scales, Regressed):
    pass


class RegressedCovariance(Regressed):
    pass


class PenaltyWithDomain(Regressed):
    """What is added to the loss by itself acts on no output, whatever its domain."""

    def start(self) -> Tensor:
        return torch.tensor([0.1, 1.0, 3.0])

    def training_step(self, batch: Any, _: int) -> Tensor:
        barrier = Normal(0.0, self.shape).log_prob(torch.ones(3)).sum()
        return (self.layer(batch[0]) - 1).square().sum(1).mean() - barrier


class PositiveOutput(PenaltyWithDomain):
    """The output of the layer is a scale, which no probe may make negative."""

    def training_step(self, batch: Any, _: int) -> Tensor:
        x = batch[0].abs()
        return -Normal(0.0, self.layer(x) + 1).log_prob(x).sum(1).mean() + self.shape.sqrt().sum()


def _layer(net: L.LightningModule) -> str:
    if isinstance(net, PositiveOutput):
        with torch.no_grad():
            net.layer.weight.abs_()
    module = Adapted(net)
    return logits_layer(module, first_sample(DataLoader(TensorDataset(ROWS)), module))


@pytest.mark.parametrize("kind", [RegressedScales, RegressedCovariance])
def test_a_parameter_with_a_domain_that_acts_on_the_output_is_named(kind: type[Regressed]) -> None:
    net = kind()
    before = {name: x.clone() for name, x in net.state_dict().items()}
    with pytest.raises(NoLogitsLayerError, match=r"Parameter shape acts on the output of layer layer"):
        _layer(net)
    assert all(torch.equal(x, before[name]) for name, x in net.state_dict().items())


@pytest.mark.parametrize("kind", [PenaltyWithDomain, PositiveOutput])
def test_what_has_a_domain_and_does_not_act_on_the_output_is_no_obstacle(kind: type[Regressed]) -> None:
    assert _layer(kind()).endswith("layer")
