"""Fits of plain modules run the user's own training step on whole batches; samples with other weights come apart."""

import lightning as L
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from ifloo.models import Adapted
from ifloo.objective import SampleWeights, sample_ids
from ifloo.objective.batches import without_ids
from ifloo.objective.loaders import apart, identified
from ifloo.objective.singles import Apart

CLASS_WEIGHTS = torch.tensor([1.0, 5.0, 2.0], dtype=torch.float64)


def rows(n=12):
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(n, 4, generator=draw, dtype=torch.float64)
    return x, (x[:, :3] + 0.7 * torch.randn(n, 3, generator=draw, dtype=torch.float64)).argmax(1)


class Net(L.LightningModule):
    def __init__(self, *layers, weight=None):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(*layers, nn.Linear(4, 3, dtype=torch.float64))
        self.weight = weight

    def training_step(self, batch, _):
        return F.cross_entropy(self.body(batch[0]), batch[1], weight=self.weight)


def batches(ids, size=12):
    return list(apart(identified(DataLoader(TensorDataset(*rows()), batch_size=size)), torch.tensor(ids)))


def test_samples_come_apart_in_the_batches_that_hold_them():
    first, second = batches([2, 9], size=6)
    assert sample_ids(first).tolist() == [0, 1, 3, 4, 5, 2]
    parts = without_ids(second)
    assert isinstance(parts, Apart)
    assert (parts.rest_ids.tolist(), parts.single_ids.tolist()) == ([6, 7, 8, 10, 11], [9])
    assert torch.equal(parts.rest[0], rows()[0][[6, 7, 8, 10, 11]])
    assert torch.equal(parts.singles.batches[0][0], rows()[0][9:10])
    (whole,) = batches([40])
    assert torch.equal(without_ids(whole)[0], rows()[0])


@pytest.mark.parametrize("weight", [0.0, 0.9])
@pytest.mark.parametrize("classes", [None, CLASS_WEIGHTS], ids=["mean", "class weights"])
def test_the_loss_is_the_weighted_sum_of_those_of_single_samples(weight, classes):
    module = Adapted(Net(weight=classes))
    x, y = rows()
    if classes is not None:
        module.batch_weights = SampleWeights(1.0, torch.arange(12), classes[y])
    module.sample_weights = SampleWeights.stepped(3, weight)
    alone = F.cross_entropy(module.model.body(x), y, reduction="none")
    a = torch.ones(12, dtype=torch.float64) if classes is None else classes[y]
    w = torch.ones(12, dtype=torch.float64)
    w[3] = weight
    (batch,) = batches([3])
    torch.testing.assert_close(module.training_step(batch, 0), (w * a * alone).sum() / a.sum(), rtol=1e-13, atol=0)


def test_batch_statistics_are_those_of_the_rest():
    net = Net(nn.BatchNorm1d(4, dtype=torch.float64))
    module, x, y = Adapted(net).train(), *rows()
    module.sample_weights = SampleWeights.removing([3], "drop", 12)
    (batch,) = batches([3])
    rest = torch.arange(12) != 3
    expected = net.training_step((x[rest], y[rest]), 0)
    torch.testing.assert_close(module.training_step(batch, 0), expected, rtol=1e-13, atol=0)


def test_a_batch_of_nothing_but_removed_samples_has_no_gradient():
    module = Adapted(Net())
    module.sample_weights = SampleWeights.removing([0, 1], "zero_weight", 12)
    first = batches([0, 1], size=2)[0]
    loss = module.training_step(first, 0)
    loss.backward()
    assert not bool(loss)
    assert not any(bool(p.grad.any()) for p in module.parameters())


def test_a_batch_without_ids_is_a_step_of_the_users_own_while_all_weights_are_equal():
    net = Net(nn.BatchNorm1d(4, dtype=torch.float64))
    module = Adapted(net).train()
    torch.testing.assert_close(module.training_step(rows(), 0), net.training_step(rows(), 0), rtol=1e-13, atol=0)
