"""Metrics of torchmetrics are silent while losses are taken, and hold afterwards what they held before."""

import copy
import subprocess
import sys

import lightning as L
import pytest
import torch
import torchmetrics
from torch import nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn import functional as F
from torchmetrics import MetricCollection

from ifloo.objective.functional import scoring
from ifloo.objective.silence import silenced

X = torch.randn(12, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = X[:, :3].argmax(1)


def accuracy(**settings):
    return torchmetrics.Accuracy("multiclass", num_classes=3, **settings)


class Net(L.LightningModule):
    """A classifier with metrics in the manner of public templates."""

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, 3, dtype=torch.float64)
        self.acc, self.by_class, self.mean = accuracy(), accuracy(average=None), torchmetrics.MeanMetric()
        self.area = torchmetrics.AUROC("multiclass", num_classes=3)  # keeps all predictions
        self.best = torchmetrics.MaxMetric()
        self.all = MetricCollection([accuracy(), torchmetrics.F1Score("multiclass", num_classes=3)], prefix="train_")
        self.listed, self.named = [accuracy()], {"acc": accuracy()}

    def loss(self, x, y):
        return F.cross_entropy(self.lin(x), y)

    def training_step(self, batch, _):
        x, y = batch
        z, loss = self.lin(x), self.loss(x, y)
        self.log("acc", self.acc(z, y))
        self.log("one", self.by_class(z, y)[1])
        self.mean(loss)
        self.log("mean", self.mean)
        self.area.update(z, y)
        self.best(self.mean.compute().item())
        self.log_dict(self.all(z, y))
        self.all.update(z, y)
        self.log("f1", self.all.compute()["train_MulticlassF1Score"])
        for metric in (*self.listed, *self.named.values()):
            metric(z, y)
        return loss


def updated():
    torch.manual_seed(0)
    net = Net()
    net.log = net.log_dict = lambda *_, **__: None
    for rows in (slice(0, 5), slice(5, 12)):
        net.training_step((X[rows], Y[rows]), 0)
    return net


def metrics(net):
    held = [one for one in net.modules() if isinstance(one, torchmetrics.Metric)]
    return [*held, *net.listed, *net.named.values()]


def content(net):
    """Every attribute of every metric, copied; tensors and lists with the objects they are."""
    return [
        {name: (id(value), kept(value)) for name, value in vars(one).items() if not callable(value)}
        for one in [*metrics(net), net.all]
    ]


def kept(value):
    if isinstance(value, torch.Tensor):
        return value.detach().clone()  # a metric may keep the graph of its last value
    return [*map(kept, value)] if isinstance(value, list) else copy.copy(value)


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    return isinstance(a, nn.Module) or a == b


def alone(net, theta):
    """Losses of samples by vmap over batches of one."""
    return vmap(lambda x, y: functional_call(Step(net), theta, ((x[None], y[None]),)), randomness="different")(X, Y)


class Step(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, batch):
        return self.net.training_step(batch, 0)


def parameters(net):
    return {f"net.{name}": p.detach() for name, p in net.named_parameters()}


PASSES = {
    "outside transforms": lambda net, theta: torch.stack([functional_call(Step(net), theta, ((X, Y),))]),
    "vmap": alone,
    "vmap of grad": lambda net, theta: vmap(
        grad(lambda t, x, y: functional_call(Step(net), t, ((x[None], y[None]),))), in_dims=(None, 0, 0)
    )(theta, X, Y)["net.lin.bias"],
    "jvp": lambda net, theta: jvp(lambda t: functional_call(Step(net), t, ((X, Y),)), (theta,), (theta,))[1],
}


@pytest.mark.parametrize("context", [silenced, scoring])
@pytest.mark.parametrize("form", PASSES)
def test_metrics_hold_what_they_held_to_the_bit(form, context):
    net = updated()
    before, values = content(net), [one.compute() for one in (net.acc, net.by_class, net.area, net.mean)]
    own = net.acc.tp
    with context(net):
        assert PASSES[form](net, parameters(net)).isfinite().all()
    after = content(net)
    for a, b in zip(before, after, strict=True):
        assert a.keys() == b.keys()
        assert all(equal(a[name][1], b[name][1]) for name in a if name != "_computed")
        assert all(a[name][0] == b[name][0] for name in a if isinstance(a[name][1], (torch.Tensor, list)))
    assert net.acc.tp is own
    assert [one.compute() for one in (net.acc,)] == values[:1]
    net.acc(net.lin(X), Y)  # works on as before
    assert int(net.acc.tp.sum() + net.acc.fn.sum()) == 24


def test_losses_are_those_of_the_module_without_metrics():
    net = updated()
    with silenced(net):
        torch.testing.assert_close(alone(net, parameters(net)), F.cross_entropy(net.lin(X), Y, reduction="none"))


def test_metrics_run_outside_transforms_where_their_value_may_enter_the_loss():
    class Weighted(Net):
        def training_step(self, batch, _):
            z = self.lin(batch[0])
            return self.loss(*batch) * (1 + self.acc(z, batch[1])) + self.mse(z[:, 0], batch[0][:, 0])

    net = Weighted()
    net.mse = torchmetrics.MeanSquaredError()
    z = net.lin(X)
    expected = F.cross_entropy(z, Y) * (1 + (z.argmax(1) == Y).double().mean()) + F.mse_loss(z[:, 0], X[:, 0])
    (truth,) = torch.autograd.grad(expected, net.lin.weight)
    with silenced(net):
        for _ in range(2):  # the second pass is the same: nothing is kept of the first
            loss = net.training_step((X, Y), 0)
            (gradient,) = torch.autograd.grad(loss, net.lin.weight)
            torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)  # accuracy is a float32
            torch.testing.assert_close(gradient, truth, rtol=1e-6, atol=1e-8)
    assert net.acc._update_count == 0


def test_each_context_within_another_begins_with_the_states_outside():
    class Running(Net):
        def training_step(self, batch, _):
            self.mean.update(self.loss(*batch).detach())
            return self.loss(*batch) * self.mean.compute()

    net = Running()
    net.mean.update(2.0)
    losses = []
    with silenced(net):
        for _ in range(2):
            with silenced(net):
                losses.append(net.training_step((X, Y), 0))
    assert losses[0] == losses[1]
    assert net.mean.compute() == 2


def test_a_metric_gives_zeros_in_its_own_form_inside_a_transform():
    net, seen = updated(), {}
    fresh = torchmetrics.AUROC("multiclass", num_classes=3)  # has no value yet
    net.fresh = fresh

    def values(x):
        seen.update(by_class=net.by_class(x, x), f1=net.all(x, x), fresh=net.fresh(x, x), best=net.best(x))
        seen["update"] = net.acc.update(x, x)
        return x

    with silenced(net):
        vmap(values)(X)
    assert seen["by_class"].tolist() == [0.0, 0.0, 0.0]
    assert {name: float(value) for name, value in seen["f1"].items()} == {
        "train_MulticlassAccuracy": 0.0,
        "train_MulticlassF1Score": 0.0,
    }
    assert (float(seen["fresh"]), float(seen["best"]), seen["update"]) == (0.0, 0.0, None)


def test_metrics_exchange_nothing_with_other_processes():
    net, exchanged = Net(), []
    net.acc = accuracy(
        dist_sync_on_step=True,
        dist_sync_fn=lambda value, group: exchanged.append(group) or [value],
        distributed_available_fn=lambda: True,
    )
    with silenced(net):
        net.acc(X[:, :3], Y)
        net.acc.compute()
    assert not exchanged
    net.acc(X[:, :3], Y)
    assert exchanged


def test_an_error_leaves_the_metrics_as_they_were():
    net = updated()
    before = content(net)

    def fails():
        net.acc(net.lin(X), Y)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), silenced(net):
        fails()
    assert all(equal(a[name][1], b[name][1]) for a, b in zip(before, content(net), strict=True) for name in a)


def test_floor_1_loads_no_torchmetrics():
    code = "import sys, ifloo.objective; print([name for name in sys.modules if 'torchmetrics' in name])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


class Words(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.emb = kind(6, 3, sparse=True, dtype=torch.float64)

    def forward(self, i):
        return self.emb(i).square().sum()


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_sparse_embeddings_have_dense_gradients_while_scoring(kind):
    module, i = Words(kind), torch.tensor([[0, 1], [4, 0]])
    dense = Words(kind)
    dense.emb.sparse = False
    dense.load_state_dict(module.state_dict())
    (truth,) = torch.autograd.grad(dense(i), dense.emb.weight)
    with scoring(module):
        (gradient,) = torch.autograd.grad(module(i), module.emb.weight)
        assert not gradient.is_sparse
        torch.testing.assert_close(gradient, truth, rtol=0, atol=0)
    assert module.emb.sparse
