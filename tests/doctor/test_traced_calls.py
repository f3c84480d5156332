"""Calls of a forward pass that no layer shows: seen where they are made, silent where they are not."""

import inspect

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ifloo.doctor.finding import Finding, Severity
from ifloo.doctor.forward_trace import call_findings, undisturbed
from tests.doctor.peculiar import BATCH, Classifier, run


class Functional(nn.Module):
    """Calls what no layer shows."""

    def __init__(self, how):
        super().__init__()
        self.how = how

    def forward(self, x):
        return self.how(x, self.training)


SDPA = "scaled_dot_product_attention"


def seen(how):
    return call_findings(Classifier(nn.Sequential(Functional(how))), BATCH, run)


@pytest.mark.parametrize(
    ("how", "name"),
    [
        (lambda x, training: F.dropout(x, 0.3, training), "dropout"),
        (lambda x, training: F.rrelu(x, training=training), "rrelu"),
        (lambda x, training: F.scaled_dot_product_attention(x, x, x, None, 0.3 * training), SDPA),
        (lambda x, training: F.scaled_dot_product_attention(x, x, x, dropout_p=0.3 if training else 0.0), SDPA),
        (lambda x, training: x + torch.randn_like(x) if training else x, "randn_like"),
        (lambda x, training: x * x.new_empty(len(x), 1, 1).bernoulli_(0.9) if training else x, "bernoulli_"),
    ],
    ids=["dropout", "slopes", "attention", "attention by name", "noise", "dropped paths"],
)
def test_random_numbers_that_no_layer_draws(how, name):
    assert [one for one in seen(how) if one.severity is Severity.WARNING] == [
        Finding(
            "random numbers drawn in the forward pass of training",
            f"body.0 ({name})",
            "While scoring they must be off (`training=self.training`), and then J is not the function that was "
            "trained; left on, the loss of a sample differs from call to call and scoring stops.",
            "Take them out and fit again; else trust the scores as far as refits confirm them.",
            Severity.WARNING,
        )
    ]


@pytest.mark.parametrize(
    "how",
    [
        lambda x, training: F.dropout(x, 0.3, training=False),
        lambda x, training: F.dropout(x, 0.0, training),
        lambda x, training: F.rrelu(x, 0.2, 0.2, training),
        lambda x, training: F.batch_norm(x, torch.zeros(4).double(), torch.ones(4).double()),
        lambda x, training: x if training else x + torch.randn_like(x),
    ],
    ids=["dropout off", "dropout of nothing", "one slope", "batch norm by constants", "branch not taken"],
)
def test_calls_that_are_no_finding(how):
    assert seen(how) == []


def test_layers_are_not_found_twice():
    assert call_findings(Classifier(nn.Sequential(nn.Dropout(0.2), nn.BatchNorm1d(4), nn.RReLU())), BATCH, run) == []


def test_batch_norm_as_a_function():
    assert seen(lambda x, training: F.batch_norm(x, None, None, training=True)) == [
        Finding(
            "F.batch_norm by the statistics of the batch",
            "body.0 (batch_norm)",
            "Samples of a batch are mixed in training; if that is so in evaluation mode too, scoring stops at it.",
            "Use nn.GroupNorm or nn.LayerNorm, and fit again.",
            Severity.WARNING,
        )
    ]


def test_attention_as_a_function():
    (one,) = seen(lambda x, training: F.scaled_dot_product_attention(x, x, x))
    assert (one.what, one.where, one.severity) == (
        "fused attention (F.scaled_dot_product_attention)",
        "body.0 (scaled_dot_product_attention)",
        Severity.NOTE,
    )


class Logging(Classifier):
    """Logs from within its losses, as a training step does."""

    def log(self, name, value):
        raise AssertionError("a watched pass logs nothing")

    def log_dict(self, values):
        raise AssertionError("a watched pass logs nothing")

    def sample_losses(self, batch):
        losses = super().sample_losses(batch)
        self.log("train_loss", losses.mean())
        self.log_dict({"largest": losses.max(), "smallest": losses.min()})
        return losses


def test_logging():
    module = Logging(nn.Identity())
    assert call_findings(module, BATCH, run) == [
        Finding(
            "self.log within the loss of a sample",
            "train_loss, largest, smallest",
            "Harmless: silent while samples are scored and while refits are trained.",
            "None needed.",
            Severity.NOTE,
        )
    ]
    with pytest.raises(AssertionError):  # its own log is back
        module.sample_losses(BATCH)


def test_a_pass_that_cannot_be_watched():
    def needs_trainer(x, training):
        raise RuntimeError("Net is not attached to a `Trainer`. Attach it.")

    line = inspect.getsourcelines(needs_trainer)[1] + 1
    assert seen(needs_trainer) == [
        Finding(
            "a pass in training mode that could not be traced",
            "Classifier",
            "Whether it draws random numbers or logs is not known: RuntimeError: Net is not attached to a `Trainer`. "
            f"Attach it. (tests/doctor/test_traced_calls.py:{line}).",
            "None needed if scoring runs nevertheless.",
            Severity.NOTE,
        )
    ]


def test_watching_leaves_hooks_and_random_numbers_as_they_were():
    torch.manual_seed(1)
    np.random.seed(1)
    expected, there = torch.rand(3), np.random.rand()
    torch.manual_seed(1)
    np.random.seed(1)
    module = Classifier(nn.Sequential(nn.Dropout(0.5)))
    torch.manual_seed(1)
    call_findings(module, BATCH, run)
    with undisturbed():
        torch.rand(7), np.random.rand(7)
    assert torch.equal(torch.rand(3), expected)
    assert np.random.rand() == there
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
