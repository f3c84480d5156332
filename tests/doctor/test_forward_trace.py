"""What derivatives and state of a module come to on a few samples; and models of which nothing is found."""

import pytest
import torch
from torch import nn

from ifloo.doctor.finding import Finding, Severity
from ifloo.doctor.forward_trace import call_findings, changed_state, derivative_findings
from ifloo.doctor.layer_findings import diagnose
from ifloo.errors import InputError
from ifloo.models import LogisticRegression, MultimodalLM
from ifloo.objective import FunctionalLosses, Objective, TrainingData, preflight
from ifloo.params import ParamSpace
from tests.doctor.peculiar import BATCH, REFUSED_IN_PLACE, Classifier, Counting, run


class InTraining(Counting):
    def forward(self, x):
        return super().forward(x) if self.training else x


class Averaging(nn.Module):
    """A metric: keeps a sum as an attribute, as torchmetrics does, and no buffer."""

    def __init__(self):
        super().__init__()
        self.total = torch.zeros((), dtype=torch.float64)

    def forward(self, x):
        self.total.add_(x.detach().sum())
        return x


def tried(module):
    changed = changed_state(module, BATCH, run)
    space = ParamSpace.of(module)
    return derivative_findings(FunctionalLosses(module, space), space.values_of(module), BATCH, changed)


@pytest.mark.parametrize(
    ("body", "where", "consequence", "weight"),
    [
        (Counting(True), "body.calls", f"torch.func refuses to differentiate this one: {REFUSED_IN_PLACE}.", "fatal"),
        (
            Counting(False),
            "body.calls",
            "This pass also depends on, or counts, the calls before it: scores may depend on their order.",
            "warning",
        ),
    ],
    ids=["in place", "another tensor"],
)
def test_a_buffer_changed_in_evaluation_mode(body, where, consequence, weight):
    assert tried(Classifier(body)) == [
        Finding(
            "a buffer or metric changed by each call in evaluation mode",
            where,
            f"The loss is to be a function of weights and sample alone. {consequence}",
            "Change buffers and metrics in training_step or validation_step and not where losses of samples are taken, "
            "or only `if self.training:`.",
            Severity(weight),
        )
    ]


def test_a_metric_updated_in_the_loss():
    (one,) = tried(Classifier(nn.Sequential(Averaging())))
    assert (one.where, one.severity) == ("body.0.total", Severity.FATAL)


def test_metrics_of_torchmetrics_work_on_copies_while_samples_are_scored():
    torchmetrics = pytest.importorskip("torchmetrics")

    class Measured(nn.Module):
        def __init__(self):
            super().__init__()
            self.mean, self.calls = torchmetrics.MeanMetric(), Counting(False)

        def forward(self, x):
            self.mean.update(x.detach())
            return self.calls(x)

    (one,) = tried(Classifier(Measured()))
    assert one.where == "body.calls.calls"


@pytest.mark.parametrize(
    "body",
    [
        InTraining(True),
        nn.BatchNorm1d(4),
        nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3)),
        nn.MultiheadAttention(3, 1, batch_first=True),
    ],
    ids=["in training only", "batch norm", "spectral norm", "attention"],
)
def test_state_that_evaluation_leaves_alone(body):
    class Called(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = body

        def forward(self, x):
            return self.layer(x, x, x)[0] if isinstance(body, nn.MultiheadAttention) else self.layer(x)

    assert tried(Classifier(Called())) == []


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers(kind):
    name = {"RNN": "rnn_tanh"}.get(kind.__name__, kind.__name__.lower())
    assert tried(Classifier(kind(3, 3, batch_first=True))) == [
        Finding(
            f"{kind.__name__}, for which torch.func has no rule",
            "body",
            "Losses and gradients of single samples cannot be computed: Batching rule not implemented for "
            f"aten::{name}.input.",
            "Write the recurrence out with nn.Linear, torch.tanh and torch.sigmoid, one step of the sequence after the "
            "other (weights can be copied over), or use a convolution or attention in its place.",
            Severity.FATAL,
        )
    ]


class Written(nn.Module):
    """The remedy: a recurrence of linear layers."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(3, 12), nn.Linear(12, 12)

    def forward(self, x):
        h = x.new_zeros(len(x), 12)
        for k in range(x.shape[1]):
            h = torch.tanh(self.inner(x[:, k]) + self.outer(h))
        return h


def test_a_recurrence_written_out():
    assert tried(Classifier(Written())) == []


class Once(torch.autograd.Function):
    """Has a first derivative, and neither a second one nor one in forward mode."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Custom(nn.Module):
    def forward(self, x):
        return Once.apply(x)


def test_a_loss_without_a_forward_derivative():
    module = Classifier(nn.Sequential(nn.Linear(3, 3), Custom()))
    (one,) = tried(module)
    assert one.what == "a loss without a derivative in forward mode (jvp)"
    assert one.where == "Classifier"
    assert one.consequence.startswith("Scores through a curvature need it; torch says: ")
    assert "jvp" in one.consequence
    assert one.remedy == (
        "Replace the operation that is named: custom autograd functions, checkpointing and fused kernels often lack "
        "it. Or take a method of first derivatives alone (attribution.method ifloo.attribution.GradientDot or TracIn)."
    )
    assert one.fatal


# Models with nothing wrong.


def _multimodal_batch(model):
    ids = torch.tensor([[262] * 4 + [3, 4, 5]] * 3)
    labels = torch.tensor([[-100] * 5 + [4, 5]] * 3)
    pixels = torch.rand(3, 1, 1, 28, 28, dtype=torch.float64)
    mask = torch.ones_like(ids)
    return {"input_ids": ids, "labels": labels, "attention_mask": mask, "pixel_values": pixels}


CLEAN = {
    "logistic regression": lambda: (
        LogisticRegression(),
        {"x": torch.rand(4, 784, dtype=torch.float64), "labels": torch.tensor([0, 1, 2, 3]), "idx": torch.arange(4)},
    ),
    "image-text model": lambda: ((model := MultimodalLM()), _multimodal_batch(model)),
    "cnn": lambda: (
        Classifier(nn.Sequential(nn.Conv1d(4, 5, 2), nn.GroupNorm(1, 5), nn.GELU(), nn.AvgPool1d(2)), 5),
        BATCH,
    ),
}


@pytest.mark.parametrize("case", CLEAN.values(), ids=CLEAN)
def test_nothing_is_found_where_nothing_is_wrong(case):
    torch.manual_seed(0)
    module, batch = case()
    assert diagnose(module) == []
    assert call_findings(module, batch, run) == []
    assert changed_state(module, batch, run) == []
    space = ParamSpace.of(module)
    assert derivative_findings(FunctionalLosses(module, space), space.values_of(module), batch, []) == []


# Preflight, where torch.func fails.


def _refusal(module):
    space = ParamSpace.of(module)
    data = TrainingData([BATCH], space.device, space.dtype)
    with pytest.raises(InputError) as caught:
        preflight(Objective(FunctionalLosses(module, space), data), space.values_of(module))
    return str(caught.value)


def test_preflight_names_recurrent_layers():
    message = _refusal(Classifier(nn.GRU(3, 3, batch_first=True)))
    assert message.startswith("The loss of one sample cannot be computed alone (torch.func.vmap over batches of one): ")
    assert message.endswith(
        "  Its cause is most often BatchNorm in train mode, or a forward pass that depends on values (`.item()`, `if` "
        "on a tensor). Per-sample influence needs a loss that belongs to the sample alone.\n"
        "  torch.func has no rule for GRU (body)."
    )


def test_preflight_says_that_there_is_no_gradient():
    assert _refusal(Classifier(Counting(True))) == (
        f"The gradient of one sample's loss cannot be computed (torch.func.vmap of grad): {REFUSED_IN_PLACE}. This is "
        "not supported; please rewrite the function being transformed to explicitly accept the mutated Tensor(s) as "
        "inputs.\n"
        "  Its cause is most often a buffer or metric that the forward pass changes in place, or an operation without "
        "a rule for torch.func."
    )


def test_preflight_says_that_there_are_no_losses():
    assert _refusal(Classifier(nn.Linear(5, 5))) == (
        "The losses of the first 6 samples cannot be computed: mat1 and mat2 shapes cannot be multiplied (24x3 and "
        "5x5)\n"
        "  A loss taken from training_step runs it on batches of one under torch.func.vmap: no BatchNorm by batch "
        "statistics, no `.item()`, no metric that is updated there. Or give the losses as a function of your own."
    )
