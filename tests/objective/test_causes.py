"""True causes: of passes that differ, and of a batch whose loss is not the mean over its samples."""

import itertools
import random

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ifloo.models import Adapted
from ifloo.objective.causes import cause_of_change, causes_of_other_mean

COUNTER = itertools.count()
X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self, change=None, *layers):
        super().__init__()
        self.lin, self.change, self.calls, self.seen = nn.Linear(4, 3), change, 0, []
        self.layers = nn.Sequential(*layers)
        self.register_buffer("ticks", torch.zeros(()))

    def forward(self, x):
        return self.layers(self.lin(x)) * (1 + (self.change(self) if self.change else 0))


def counts(net):
    net.calls += 1
    return net.calls


def ticks(net):
    net.ticks += 1
    return net.ticks


def keeps(net):
    net.seen.append(1)
    return len(net.seen)


@pytest.mark.parametrize(
    ("net", "cause"),
    [
        (Net(counts), "a state that each pass changes (calls): a counter, a buffer or a running mean"),
        (Net(ticks), "a state that each pass changes (ticks): a counter, a buffer or a running mean"),
        (Net(keeps), "a state that each pass changes (seen): a counter, a buffer or a running mean"),
        (
            Net(None, nn.Dropout(0.5)),
            "random numbers drawn in the pass (layers.0): dropout or noise that is on while scoring",
        ),
        (
            Net(lambda net: torch.rand(())),
            "random numbers drawn in the pass: dropout or noise that is on while scoring",
        ),
        (
            Net(lambda net: random.random()),
            "random numbers drawn in the pass (by Python's random): dropout or noise that is on while scoring",
        ),
        (
            Net(lambda net: float(np.random.rand()) + torch.rand(())),
            "random numbers drawn in the pass (by torch, numpy.random): dropout or noise that is on while scoring",
        ),
        (
            Net(lambda net: next(COUNTER)),
            "something outside the module: a global counter, a file, the time, or a random generator of its own",
        ),
    ],
    ids=["counter", "buffer", "list", "dropout", "noise", "random", "numpy", "outside"],
)
def test_the_cause_of_passes_that_differ(net, cause):
    state = torch.get_rng_state()
    assert cause_of_change(net, lambda: net(X)) == cause
    assert torch.equal(state, torch.get_rng_state())


class Configured(L.LightningModule):
    def __init__(self, ratio=0.5):
        super().__init__()
        self.save_hyperparameters()
        self.lin = nn.Linear(4, 3)

    def training_step(self, batch, batch_idx):
        return self.lin(batch).sum() * (random.random() < self.hparams.ratio)


def test_what_lightning_keeps_of_settings_is_no_state_that_changes():
    """The module and the adapter around it hold values of the same names."""
    module = Adapted(Configured())
    cause = cause_of_change(module, lambda: module.single_loss(X[:1]))
    assert cause.startswith("random numbers drawn in the pass (by Python's random)")


def labels(value):
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    y[3] = value
    return y


MASK = {"input_ids": torch.ones(2, 3, dtype=torch.int64), "attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]])}


@pytest.mark.parametrize(
    ("net", "batch", "ratio", "words"),
    [
        (Net(), (X, labels(1)), 6.0, ["the loss is a sum over the batch: it is 6 times the mean"]),
        (Net(), (X, labels(-100)), 1.1, ["item 1 of the batch holds -100, a label that is left out (ignore_index)"]),
        (Net(), (X, labels(255)), 1.1, ["holds 255, a label that is left out (ignore_index)"]),
        (Net(), MASK, 1.1, ["attention_mask masks padding: a mean over the valid tokens"]),
        (Net(None, nn.CrossEntropyLoss(torch.ones(3))), (X, labels(1)), 1.1, ["layers.0 weights its classes"]),
        (
            Net(None, nn.BatchNorm1d(3, track_running_stats=False)),
            (X, labels(1)),
            1.1,
            ["BatchNorm mixes the samples of a batch (layers.0)"],
        ),
        (Net(), (X, labels(1)), 1.1, ["padding or ignore_index", "class weights", "contrastive", "a sum in place of"]),
    ],
    ids=["sum", "ignored", "void pixels", "padding", "class weights", "batch norm", "nothing seen"],
)
def test_the_causes_of_a_mean_that_is_another(net, batch, ratio, words):
    text = causes_of_other_mean(net, batch, ratio, 6)
    assert all(word in text for word in words)
    assert text.startswith("Seen: ") == (words[0] != "padding or ignore_index")


def test_bytes_of_255_are_pixels():
    pixels = torch.full((6, 4), 255, dtype=torch.uint8)
    assert not causes_of_other_mean(Net(), (pixels, labels(1)), 1.1, 6).startswith("Seen")


def test_a_weighted_batch_of_the_kind_is_another_mean_indeed():
    """The premise: with an ignored label the batch mean is not the mean over batches of one."""
    z, y = X[:, :3].repeat(1, 1), torch.tensor([[0, -100], [1, 1]])
    z = torch.stack([z[:2], z[2:4]]).transpose(1, 2)
    whole = F.cross_entropy(z, y)
    alone = torch.stack([F.cross_entropy(z[i : i + 1], y[i : i + 1]) for i in range(2)]).mean()
    assert abs(whole - alone) > 1e-2
