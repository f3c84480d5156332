"""Losses are compared relative to their own size and to the measured rounding: tiny ones as sharply as large ones."""

import lightning as L
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from ifloo.errors import InputError
from ifloo.models import Adapted
from ifloo.objective import Objective, preflight
from ifloo.objective.functional import Path
from tests.objective.situations import SITUATIONS, rows

SCALES = (1e-12, 1.0, 1e12)
DTYPES = (torch.float64, torch.float32)


class Scaled(L.LightningModule):
    """A softmax regression whose loss is multiplied by a number."""

    def __init__(self, scale: float, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lin, self.scale = nn.Linear(4, 3, dtype=dtype), scale

    def losses(self, batch):
        return self.scale * F.cross_entropy(self.lin(batch[0]), batch[1], reduction="none")

    def training_step(self, batch, _):
        return self.losses(batch).mean()


class ClassWeights(Scaled):
    def training_step(self, batch, _):
        weights = torch.tensor([1.0, 1.5, 2.0]).to(self.lin.weight)[batch[1]]
        return (weights * self.losses(batch)).sum() / weights.sum()


class ClassWeightsOneByOne(ClassWeights):
    """The same where a value is read, so that samples run one by one."""

    def training_step(self, batch, _):
        loss = super().training_step(batch, _)
        return loss + 0 * loss.item()


class Sum(ClassWeightsOneByOne):
    def training_step(self, batch, _):
        loss = self.losses(batch).sum()
        return loss + 0 * loss.item()


class Random(Scaled):
    def training_step(self, batch, _):
        return super().training_step(batch, _) * (1 + 0.01 * torch.rand(()))


class WithoutGradient(Scaled):
    def training_step(self, batch, _):
        losses = self.losses(batch)
        with torch.no_grad():
            weights = (-F.cross_entropy(self.lin(batch[0]), batch[1], reduction="none")).exp()
        return (weights * losses).mean()


def objective_of(kind, scale, dtype, fitted=0.0):
    x, y = rows()
    module = kind(scale, dtype)
    if fitted:  # logits that fit the label well: a loss that is a difference of large numbers
        with torch.no_grad():
            module.lin.weight.mul_(0).add_(fitted * torch.eye(3, 4, dtype=dtype))
        x = torch.cat([F.one_hot(y, 3).double(), 0.01 * x[:, :1]], 1)
    return Objective.of(Adapted(module), DataLoader(TensorDataset(x.to(dtype), y), batch_size=8))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fitted", [0.0, 15.0])
def test_plain_losses_pass_in_the_fastest_way(scale, dtype, fitted):
    objective = objective_of(Scaled, scale, dtype, fitted)
    assert objective.losses.path is Path.FORWARD
    preflight(objective, objective.losses.theta())
    assert objective.losses.path is Path.FORWARD


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", [ClassWeights, ClassWeightsOneByOne, Sum])
def test_a_batch_that_is_no_plain_mean_is_refused(scale, dtype, kind):
    objective = objective_of(kind, scale, dtype)
    assert (objective.losses.path is Path.LOOP) == (kind is not ClassWeights)
    with pytest.raises(InputError, match=r"its loss is not a mean of losses of single samples\."):
        preflight(objective, objective.losses.theta())


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_random_losses_are_refused(scale, dtype):
    with pytest.raises(InputError, match=r"^The loss of a sample differs at two calls on the same batch"):
        objective_of(Random, scale, dtype)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_stopped_gradient_is_seen(scale, dtype):
    objective = objective_of(WithoutGradient, scale, dtype)
    assert objective.losses.path is Path.BACKWARD
    assert "a part of the loss passes no gradient" in " ".join(objective.losses.notes)


@pytest.mark.parametrize("name", ["values", "padded"])
def test_losses_one_by_one_are_compared_with_a_step_on_a_batch(name):
    case = SITUATIONS[name]
    objective = Objective.of(Adapted(case.module()), case.loader())
    with pytest.raises(InputError, match=r"its loss is not a mean of losses of single samples\."):
        preflight(objective, objective.losses.theta())
