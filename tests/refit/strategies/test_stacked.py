"""Replicas trained together against refits one by one: weights, J and ‖∇J‖ to 1e-12, whatever is trained and how."""

import functools
import logging
from dataclasses import replace

import pytest
import torch
from torch import nn, optim
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from ifloo.objective import SampleWeights
from ifloo.refit.strategies import StackedReplicas, stacked
from ifloo.refit.strategies.base import OneByOne, RefitTask
from ifloo.refit.strategies.replica_weights import ReplicaWeights
from tests.problems import weights_with
from tests.refit.trained import REMOVED, SGD, C, D, InSevens, N, Reading, Tied, Trained, dataset, perceptron, refitter


def removing(ids, removal="drop"):
    return [RefitTask(), *(RefitTask(SampleWeights.removing([i], removal, N)) for i in ids)]


def assert_same(refits, truth):
    for ours, theirs in zip(refits, truth, strict=True):
        assert ours.module.state_dict().keys() == theirs.module.state_dict().keys()
        for name, value in theirs.module.state_dict().items():
            torch.testing.assert_close(ours.module.state_dict()[name], value, rtol=0, atol=1e-12)
        torch.testing.assert_close(ours.minimum.theta, theirs.minimum.theta, rtol=0, atol=1e-12)
        assert ours.minimum.value == pytest.approx(theirs.minimum.value, abs=1e-12)
        assert ours.minimum.grad_norm == pytest.approx(theirs.minimum.grad_norm, abs=1e-12)
        assert ours.module.sample_weights is theirs.module.sample_weights


def check(how, tasks=None, at_once=8):
    """Stacked equals one by one, and the removals do something: no two refits end alike."""
    tasks = tasks or removing(REMOVED)
    refits = StackedReplicas(how, at_once).fit(tasks)
    assert_same(refits, OneByOne(how).fit(tasks))
    ends = torch.stack([r.minimum.theta for r in refits])
    apart = torch.cdist(ends, ends) + torch.eye(len(ends))
    assert float(apart.min()) > 1e-6
    return refits


OPTIMIZERS = {
    "sgd": functools.partial(optim.SGD, lr=0.1),
    "momentum": SGD,
    "nesterov": functools.partial(optim.SGD, lr=0.1, momentum=0.9, nesterov=True),
    "adam": functools.partial(optim.Adam, lr=0.01),
    "amsgrad": functools.partial(optim.Adam, lr=0.01, amsgrad=True),
    "adamw": functools.partial(optim.AdamW, lr=0.01, weight_decay=0.0),
    "nadam": functools.partial(optim.NAdam, lr=0.01),
    "radam": functools.partial(optim.RAdam, lr=0.01),
    "adamax": functools.partial(optim.Adamax, lr=0.01),
    "rmsprop": functools.partial(optim.RMSprop, lr=0.01, momentum=0.5, centered=True),
    "rprop": functools.partial(optim.Rprop, lr=0.01),
    "adagrad": functools.partial(optim.Adagrad, lr=0.05, initial_accumulator_value=0.1),
    "adadelta": functools.partial(optim.Adadelta, lr=1.0),
    "asgd": functools.partial(optim.ASGD, lr=0.1),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_every_elementwise_optimizer(optimizer):
    check(refitter(lambda: Trained(perceptron(), optimizer), shuffle=True))


@pytest.mark.parametrize("init", ["warm", "cold"])
@pytest.mark.parametrize("removal", ["drop", "zero_weight"])
@pytest.mark.parametrize("shuffle", [False, True])
def test_every_start_removal_and_order(init, removal, shuffle):
    check(refitter(lambda: Trained(perceptron()), shuffle, init=init), removing(REMOVED, removal))


def test_batches_that_carry_their_ids():
    check(refitter(lambda: Trained(perceptron()), True, dataset(ids=True)), removing([100, 107, 123]))


@pytest.mark.parametrize("at_once", [1, 3, 6, 50])
def test_however_many_at_once(at_once):
    check(refitter(lambda: Trained(perceptron()), shuffle=True), at_once=at_once)


NETWORKS = {
    "attention": Reading,
    "tied, frozen, unused, buffer": Tied,
    "dropout": lambda: perceptron(nn.Dropout(0.3)),
    "batch statistics that nothing keeps": lambda: perceptron(nn.BatchNorm1d(5, track_running_stats=False)),
    "batch statistics that are fixed": lambda: perceptron(nn.BatchNorm1d(5).eval()),
}


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_every_network(network):
    adam = functools.partial(optim.Adam, lr=0.01)
    check(refitter(lambda: Trained(network(), adam), shuffle=True))


def cosine(module, optimizer):
    """Needs the Trainer, as schedules over all steps do."""
    steps = module.trainer.estimated_stepping_batches
    return {"scheduler": optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=steps), "interval": "step"}


SCHEDULES = {"epochs": lambda _, o: optim.lr_scheduler.StepLR(o, 2, 0.1), "steps": cosine}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_schedules_follow(schedule):
    check(refitter(lambda: Trained(perceptron(), schedule=schedule)))


RECIPES = {
    "accumulation": {"accumulate_grad_batches": 2},
    "steps": {"max_steps": 9},
    "clipping by value": {"gradient_clip_val": 0.02, "gradient_clip_algorithm": "value"},
    "cast to 64 bits": {"precision": "64-true"},
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_every_recipe(recipe):
    check(refitter(lambda: Trained(perceptron()), shuffle=True, **recipe))


class ByRank(Trained):
    """Tells weights from biases by their rank, which replicas must not change."""

    def configure_optimizers(self):
        ranks = [[p for p in self.parameters() if p.ndim == r] for r in (1, 2)]
        return SGD([{"params": ranks[0], "lr": 0.3}, {"params": ranks[1]}])


def test_groups_of_parameters_keep_their_settings():
    check(refitter(lambda: ByRank(perceptron())))


class Logging(Trained):
    def sample_losses(self, batch):
        losses = super().sample_losses(batch)
        self.log("worst", losses.max())
        return losses * (1 + self.current_epoch)


def test_losses_that_log_and_ask_the_trainer():
    check(refitter(lambda: Logging(perceptron())))


def test_32_bits_agree_to_their_rounding():
    data = TensorDataset(dataset().tensors[0].float(), dataset().tensors[1])
    how = refitter(lambda: Trained(perceptron().float()), True, data)
    ours, theirs = (path.fit(removing(REMOVED)) for path in (StackedReplicas(how, 8), OneByOne(how)))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.minimum.theta, b.minimum.theta, rtol=0, atol=2e-6)


def test_displaced_starts_and_groups_of_samples():
    step = 0.1 * torch.randn(5 * D + 5 + 5 * C + C, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    tasks = [
        RefitTask(displacement=step),
        RefitTask(displacement=-step),
        RefitTask(SampleWeights.removing([1, 2, 20], "drop", N), step),
        RefitTask(weights_with([3, 4], [0.5, 2.0], default=0.9)),
    ]
    check(refitter(lambda: Trained(perceptron()), shuffle=True), tasks)


def test_a_replica_does_not_know_its_neighbours():
    """The same task beside others, in another place: the same refit, but for the order of additions."""
    how = refitter(lambda: Trained(perceptron()), shuffle=True)
    tasks = removing(REMOVED)
    together = StackedReplicas(how, 8).fit(tasks)
    assert_same(StackedReplicas(how, 8).fit(tasks[::-1])[::-1], together)
    far = RefitTask(displacement=torch.full_like(together[0].minimum.theta, 100.0))
    assert_same(StackedReplicas(how, 8).fit([far, *tasks])[1:], together)


def test_the_state_of_the_random_generator_does_not_matter():
    how = refitter(lambda: Trained(perceptron(nn.Dropout(0.3))), shuffle=True, init="cold")
    path = StackedReplicas(how, 8)
    refits = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        refits.append(path.fit(removing(REMOVED)))
    for a, b in zip(*refits, strict=True):
        assert torch.equal(a.minimum.theta, b.minimum.theta)


def test_refits_own_their_weights_and_share_the_rest():
    refits = check(refitter(lambda: Trained(Tied())))
    first, second = (r.module.network for r in refits[:2])
    assert first.first.weight.data_ptr() != second.first.weight.data_ptr()
    assert first.first.weight is first.second.weight
    assert first.scale is second.scale
    assert first.second.bias is second.second.bias
    assert refits[0].module._trainer is None


def test_weights_of_replicas_are_those_of_each():
    ids = torch.tensor([7, 1, 4, 100, 2])
    each = [SampleWeights(), weights_with([1, 100], [0.0, 3.0], 1.5), SampleWeights.removing([4], "drop", N)]
    rows = ReplicaWeights.of(each).rows(ids)
    assert torch.equal(rows, torch.stack([w.of(ids, torch.float64) for w in each]))
    assert torch.equal(ReplicaWeights.of(each[:1]).rows(ids), torch.ones(1, 5, dtype=torch.float64))


# Out of memory.


@pytest.fixture
def small_memory(monkeypatch):
    """Room for two replicas in a fit; what torch says on a processor otherwise."""
    tried = []

    def train(self, tasks, plain=StackedReplicas._train):
        tried.append(len(tasks))
        if len(tasks) > 2:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:75] . DefaultCPUAllocator: can't allocate memory: ...")
        return plain(self, tasks)

    monkeypatch.setattr(StackedReplicas, "_train", train)
    return tried


def test_out_of_memory_halves_and_goes_on(small_memory, caplog):
    how = refitter(lambda: Trained(perceptron()))
    tasks = removing(REMOVED)
    path = StackedReplicas(how, 5)
    with caplog.at_level(logging.WARNING, "ifloo"):
        refits = path.fit(tasks)
    assert small_memory == [5, 2, 2, 2]
    assert path.max_at_once == 2
    assert caplog.messages == [
        "out of memory with 5 replicas at once ([enforce fail at alloc_cpu.cpp:75] . DefaultCPUAllocator: can't "
        "allocate memory: ...): going on with 2."
    ]
    assert_same(refits, OneByOne(how).fit(tasks))


def test_other_failures_are_passed_on(monkeypatch):
    def train(self, tasks):
        raise RuntimeError("a fault")

    path = StackedReplicas(refitter(lambda: Trained(perceptron())), 5)
    monkeypatch.setattr(StackedReplicas, "_train", train)
    with pytest.raises(RuntimeError, match=r"^a fault$"):
        path.fit(removing(REMOVED))


@pytest.mark.parametrize(("budget", "least", "most"), [(0, 1, 1), (100_000, 15, 25), (1 << 40, 64, 64)])
def test_as_many_as_memory_affords(budget, least, most, monkeypatch):
    """53 weights are 8 copies of 424 bytes, and 7 samples keep about 1,000 bytes, taken twice."""
    monkeypatch.setattr(stacked, "_budget", lambda device: budget)
    assert least <= StackedReplicas(refitter(lambda: Trained(perceptron()))).max_at_once <= most


def test_the_ends_take_no_more_memory_than_training_whatever_class_draws_the_batches(monkeypatch):
    chunks = []
    measure = stacked._ends
    monkeypatch.setattr(stacked, "_ends", lambda *given: chunks.append(given[-1]) or measure(*given))
    data = dataset()
    how, tasks = refitter(lambda: Trained(perceptron()), data=data), removing(range(7))
    for loader in (how.loader, lambda: DataLoader(data, batch_sampler=InSevens(RandomSampler(data)))):
        check(replace(how, loader=loader), tasks)
    assert chunks == [len(tasks) * InSevens.batch_size // N] * 2
    assert chunks[0] > 1
