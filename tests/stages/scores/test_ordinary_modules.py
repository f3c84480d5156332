"""Modules as people write them: metrics in training_step, sparse embeddings, errors, rows without a loss."""

import inspect

import lightning as L
import pytest
import torch
import torchmetrics
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from ifloo.attribution import GradientDot, TrainedModel
from ifloo.errors import InputError
from ifloo.models import Adapted
from ifloo.objective import Objective
from ifloo.stages import AttributionSettings, InfluencePredictor
from tests.stages.scores.test_predict_by_hand import predict

D = torch.float64


def rows(n, seed):
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed), dtype=D)
    return x, x[:, :3].argmax(1)


class Net(L.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.lin = nn.Linear(4, 3, dtype=D)

    def training_step(self, batch, _):
        return F.cross_entropy(self.lin(batch[0]), batch[1]) + 0.1 * self.lin.weight.square().sum()


class Measured(Net):
    def __init__(self):
        super().__init__()
        self.acc, self.mean = torchmetrics.Accuracy("multiclass", num_classes=3), torchmetrics.MeanMetric()
        self.all = torchmetrics.MetricCollection([torchmetrics.Accuracy("multiclass", num_classes=3)], prefix="train_")

    def training_step(self, batch, _):
        loss = super().training_step(batch, _)
        z = self.lin(batch[0])
        self.log("acc", self.acc(z, batch[1]))
        self.mean.update(loss)
        self.log("mean", self.mean.compute().item())
        self.log_dict(self.all(z, batch[1]))
        return loss


class Squared(Net):
    """Its loss is a metric's value."""

    def __init__(self):
        super().__init__()
        self.mse = torchmetrics.MeanSquaredError()

    def training_step(self, batch, _):
        return self.mse(self.lin(batch[0]).flatten(), batch[0][:, :3].flatten()) + self.lin.weight.square().sum()


class PlainSquared(Net):
    def training_step(self, batch, _):
        return F.mse_loss(self.lin(batch[0]), batch[0][:, :3]) + self.lin.weight.square().sum()


def scores(module, data=None, **settings):
    data = data or rows(30, 0)
    loader = DataLoader(TensorDataset(*data), batch_size=30)
    queries = tuple(part[:3] for part in data)
    predictor = InfluencePredictor(module, loader, AttributionSettings(damping=1.0, **settings), queries=queries)
    return torch.cat(predict(predictor, loader), dim=1)


def test_metrics_change_nothing_and_are_not_changed():
    module = Measured()
    module.acc(torch.eye(3), torch.tensor([0, 1, 1]))
    module.mean(torch.tensor(3.0))
    torch.testing.assert_close(scores(module), scores(Net()), rtol=1e-12, atol=0)
    assert module.acc.compute() == pytest.approx(2 / 3)
    assert module.mean.compute() == 3
    assert module.mean._update_count == 1


@pytest.mark.filterwarnings("ignore:.*was called before the ``update`` method.*")
def test_a_metric_whose_value_is_the_loss_keeps_running():
    found, truth = scores(Squared()), scores(PlainSquared())
    # the metric adds up in float32, whose rounding is 6e-8
    torch.testing.assert_close(found, truth, rtol=1e-5, atol=1e-6 * float(truth.abs().max()))


class Counting(Net):
    """The weight of its penalty grows with a counter of its own, and it keeps its losses."""

    def __init__(self):
        super().__init__()
        self.steps, self.outputs = 49, []
        self.register_buffer("running", torch.zeros((), dtype=D))

    def training_step(self, batch, _):
        self.steps += 1
        loss = super().training_step(batch, _) + self.steps / 100 * self.lin.bias.square().sum()
        self.outputs.append(loss)
        self.running = 0.9 * self.running + 0.1 * loss.detach()
        return loss


class Half(Net):
    def training_step(self, batch, _):
        return super().training_step(batch, _) + 0.5 * self.lin.bias.square().sum()


def test_counters_stand_as_at_the_end_of_the_fit():
    module = Counting()
    torch.testing.assert_close(scores(module), scores(Half()), rtol=1e-12, atol=1e-15)
    assert (module.steps, module.outputs, float(module.running)) == (49, [], 0.0)


class Words(L.LightningModule):
    def __init__(self, sparse):
        super().__init__()
        torch.manual_seed(0)
        self.emb, self.lin = nn.Embedding(7, 5, sparse=sparse, dtype=D), nn.Linear(5, 3, dtype=D)

    def training_step(self, batch, _):
        return F.cross_entropy(self.lin(torch.tanh(self.emb(batch[0]).sum(1))), batch[1])


def test_sparse_embeddings_are_scored_as_dense_ones():
    draw = torch.Generator().manual_seed(0)
    data = (torch.randint(7, (30, 4), generator=draw), torch.randint(3, (30,), generator=draw))
    module = Words(sparse=True)
    torch.testing.assert_close(scores(module, data), scores(Words(sparse=False), data), rtol=1e-12, atol=1e-15)
    assert module.emb.sparse


class Logging(Net):
    def training_step(self, batch, _):
        self.missing.log_metrics({"x": 0.0})
        return super().training_step(batch, _)


def test_an_attribute_error_of_the_user_comes_out_with_its_line():
    with pytest.raises(InputError) as caught:
        scores(Logging())
    line = inspect.getsourcelines(Logging)[1] + 2
    first = str(caught.value).splitlines()[0]
    assert first.startswith("training_step of Logging failed on ")
    assert first.endswith(
        "AttributeError: 'Logging' object has no attribute 'missing' "
        f"(tests/stages/scores/test_ordinary_modules.py:{line})"
    )


class Segments(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1, dtype=D)

    def training_step(self, batch, _):
        return F.cross_entropy(self.conv(batch[0]), batch[1], ignore_index=255) + 0.1 * self.conv.weight.square().sum()


def test_a_row_without_a_loss_is_named_by_its_id():
    x = torch.randn(40, 1, 5, 5, generator=torch.Generator().manual_seed(0), dtype=D)
    y = (x[:, 0] > 0).long()
    y[30] = 255
    loader = DataLoader(TensorDataset(x, y), batch_size=40)
    with pytest.raises(InputError, match="training sample 30 is nan"):
        scores(Segments(), (x, y))
    objective = Objective.of(Adapted(Segments()), loader)
    with pytest.raises(InputError, match=r"training (id|sample) 30 .*is nan"):
        GradientDot().scores(TrainedModel(objective, objective.losses.theta()), (x[:2], y[:2]))
