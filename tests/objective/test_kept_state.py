"""What passes change in a user's layers is as before afterwards: lists, counters, buffers, in every way of scoring."""

import gc
import weakref
from collections import OrderedDict, UserList, defaultdict, deque, namedtuple

import pytest
import torch
import torchmetrics
from torch import nn
from torch.func import vmap

from ifloo.objective import kept_state
from ifloo.objective.functional import scoring
from ifloo.objective.kept_state import copied
from ifloo.objective.silence import silenced

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


class Body(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin, self.norms = nn.Linear(4, 1), []

    def forward(self, x):
        z = self.lin(x)
        self.norms.append(z.norm())
        return z


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.losses, self.by_name, self.recent = Body(), [1.0], {}, deque([2.0], maxlen=2)
        self.long, self.calls, self.mean = [0.0] * 5000, 3, 0.5
        self.register_buffer("ticks", torch.ones(2))
        self.kept = torch.zeros(3)
        self.acc = torchmetrics.MeanMetric()

    def forward(self, x):
        loss = self.body(x).square().mean()
        self.losses.append(loss)
        self.by_name["loss"] = loss
        self.recent.append(loss)
        self.long.append(loss)
        self.calls += 1
        self.mean = self.mean * 0.9
        self.ticks += 1
        self.kept = self.kept + 1
        self.acc.update(loss)
        return loss


PASSES = {"plain": lambda net: net(X), "vmap": lambda net: vmap(lambda x: net(x[None]))(X)}


@pytest.mark.parametrize("form", PASSES)
def test_scoring_leaves_a_module_as_it_was(form):
    net = Net()
    objects = (net.losses, net.by_name, net.recent, net.long, net.ticks, net.kept, net.body.norms)
    with scoring(net):
        for _ in range(2):
            PASSES[form](net)
    assert objects == (net.losses, net.by_name, net.recent, net.long, net.ticks, net.kept, net.body.norms)
    assert (net.losses, net.by_name, list(net.recent), net.body.norms) == ([1.0], {}, [2.0], [])
    assert net.long == [0.0] * 5000
    assert (net.calls, net.mean) == (3, 0.5)
    assert (net.ticks.tolist(), net.kept.tolist()) == ([1.0, 1.0], [0.0, 0.0, 0.0])


def test_nothing_is_kept_from_one_pass_to_the_next():
    net = Net()
    with scoring(net):
        for _ in range(3):
            with silenced(net):
                net(X)
                assert len(net.losses) == 2
        assert len(net.losses) == 1


def test_within_a_fit_lists_and_metrics_take_part():
    net = Net()
    with silenced(net, updates=True):
        loss = net(X)
    assert net.losses == [1.0, loss]
    assert net.acc.compute() == loss
    assert "forward" not in vars(net.acc)
    net.acc.update(0.0)
    assert net.acc.compute() == pytest.approx(loss.item() / 2)


def test_within_a_fit_metrics_are_silent_inside_transforms():
    net = Net()
    net.acc.update(3.0)
    with silenced(net, updates=True):
        vmap(lambda x: net.acc(x.sum()))(X)
    assert net.acc.compute() == 3


Two = namedtuple("Two", ["a", "b"])


class Own(list):
    """A list of the user's own class."""


class Uncopied(list):
    def __reduce_ex__(self, protocol):
        raise TypeError("not this one")


CONTAINERS = {
    "lists by name": (lambda: {"train": [], "test": [1.0]}, lambda c, x: c["train"].append(x)),
    "default lists": (lambda: defaultdict(list), lambda c, x: c["train"].append(x)),
    "ordered": (OrderedDict, lambda c, x: c.update(loss=x)),
    "own class": (Own, lambda c, x: c.append(x)),
    "lists in a tuple": (lambda: ([], {"a": []}), lambda c, x: c[1]["a"].append(x)),
    "lists in a named tuple": (lambda: Two([], 1), lambda c, x: c.a.append(x)),
    "deque of lists": (lambda: deque([[]], maxlen=3), lambda c, x: c[0].append(x)),
    "set": (set, lambda c, x: c.add(x)),
    "long dict": (lambda: {i: 0.0 for i in range(2000)}, lambda c, x: c.update(new=x)),
    "long list in a dict": (lambda: {"all": [0.0] * 2000}, lambda c, x: c["all"].append(x)),
}


class Keeping(nn.Module):
    def __init__(self, make, keep):
        super().__init__()
        torch.manual_seed(0)
        self.lin, self.kept, self.keep, self.seen = nn.Linear(4, 1), make(), keep, []

    def forward(self, x):
        loss = self.lin(x).square().mean()
        self.keep(self.kept, loss)
        self.seen.append(weakref.ref(loss))
        return loss


@pytest.mark.parametrize("form", CONTAINERS)
def test_no_container_keeps_the_tensors_of_a_pass(form):
    make, keep = CONTAINERS[form]
    net, seen = Keeping(make, keep), []
    object_before = net.kept
    with scoring(net):
        for _ in range(3):
            with silenced(net):
                net(X)
                seen += net.seen
        assert type(net.kept) is type(object_before)
    gc.collect()
    assert len(seen) == 3
    assert [one() for one in seen] == [None] * 3
    assert net.kept is object_before
    assert net.kept == make()


def test_what_was_kept_of_a_fit_stays_and_has_no_graph_meanwhile():
    net = Keeping(*CONTAINERS["lists by name"])
    loss = net(X)
    with scoring(net):
        assert net.kept["train"][0].grad_fn is None
        assert net.kept["train"][0] == loss
    assert net.kept["train"] == [loss]
    assert net.kept["train"][0].grad_fn is loss.grad_fn
    other = copied(net)
    assert other.kept["train"][0].item() == loss.item()
    assert other.kept["train"][0].grad_fn is None


def test_shared_and_circular_containers_stay_so():
    net = Keeping(list, lambda c, x: c.append(x))
    net.same, net.lin.same = net.kept, net.kept
    net.ring = {"kept": net.kept}
    net.ring["self"] = net.ring
    with scoring(net):
        net(X)
        assert net.same is net.kept
        assert net.ring["kept"] is net.kept
        assert net.ring["self"] is net.ring
    assert (net.kept, net.ring["self"] is net.ring) == ([], True)


def test_containers_of_unknown_classes_are_left_alone():
    net = Keeping(UserList, lambda c, x: None)
    net.odd = Uncopied([1.0])
    objects = net.kept, net.odd
    with scoring(net):
        assert (net.kept, net.odd) == objects
        assert (net.kept is objects[0], net.odd is objects[1]) == (True, True)


class LongBuffers(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, 1)
        self.register_buffer("bank", torch.arange(5000.0))
        self.plain, self.states = torch.zeros(3000), {"ema": torch.ones(2000), "few": [torch.ones(2)]}

    def forward(self, x):
        loss = self.lin(x).square().mean() * self.bank[0].cos()
        with torch.no_grad():
            for tensor in (self.bank, self.plain, self.states["ema"], self.states["few"][0]):
                tensor.add_(1)
        return loss


@pytest.mark.parametrize("limit", [0, 64 << 20])
def test_long_tensors_changed_in_place_are_restored_after_each_pass(limit, monkeypatch):
    monkeypatch.setattr(kept_state, "COPIED_THERE", limit)
    net, copies = LongBuffers(), []
    saved = kept_state._Saved.of
    monkeypatch.setattr(kept_state._Saved, "of", lambda tensor: copies.append(tensor) or saved(tensor))
    bank, losses = net.bank, []
    with scoring(net):
        for _ in range(3):
            with silenced(net):
                losses.append(net(X).item())
                assert bank[0] == 1
            assert torch.equal(net.bank, torch.arange(5000.0))
        net(X)
    assert losses == [losses[0]] * 3
    assert net.bank is bank
    assert torch.equal(bank, torch.arange(5000.0))
    assert (float(net.plain.sum()), float(net.states["ema"].sum()), net.states["few"][0].tolist()) == (0, 2000, [1, 1])
    assert len(copies) == 4  # once, however many passes
    assert kept_state._SAVED == {}
