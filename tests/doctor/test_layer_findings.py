"""What is found of a module by looking at it: whole where it is, silent where it is not."""

import pytest
import torch
from torch import nn

from ifloo.doctor.finding import Finding, Severity, heaviest_first
from ifloo.doctor.layer_findings import diagnose
from tests.doctor.peculiar import Classifier, Wrapping


def found(body, **how):
    return diagnose(Classifier(body, **how))


def test_batch_norm_in_training_mode():
    body = nn.Sequential(*(nn.BatchNorm1d(4) for _ in range(4)))
    assert found(body) == [
        Finding(
            "BatchNorm1d in training mode",
            "body.0, body.1, body.2, ... (4 in all)",
            "Training normalises by the statistics of the batch (InstanceNorm: of the sample), scoring by the running "
            "ones, held constant: J is then another function than the one trained, |grad J| need not be small at its "
            "end, and what a refit does to the running statistics is no part of the scores.",
            "Use nn.GroupNorm or nn.LayerNorm, or put these layers into evaluation mode before the fit (.eval() in "
            "__init__), and fit again; else trust the scores as far as refits confirm them.",
            Severity.WARNING,
        )
    ]
    assert found(body.eval()) == []  # frozen: the same function in training
    assert [one.where for one in found(nn.InstanceNorm1d(4, track_running_stats=True))] == ["body"]


def test_batch_norm_without_running_statistics():
    body = nn.BatchNorm1d(4, track_running_stats=False)
    expected = Finding(
        "BatchNorm1d without running statistics (track_running_stats=False)",
        "body",
        "The output of a sample depends on the other samples of its batch in evaluation mode too: its loss is not its "
        "own, and scoring stops at this.",
        "Use nn.GroupNorm or nn.LayerNorm, or keep running statistics, and fit again.",
        Severity.FATAL,
    )
    assert found(body) == found(body.eval()) == [expected]
    assert found(nn.InstanceNorm1d(4)) == found(nn.LayerNorm(3)) == found(nn.GroupNorm(2, 4)) == []


@pytest.mark.parametrize(
    ("body", "share", "where"),
    [
        (nn.Sequential(nn.Dropout(0.2)), "0.2", "body.0"),
        (nn.LSTM(3, 3, num_layers=2, dropout=0.3, batch_first=True), "0.3", "body"),
        (nn.ModuleList([nn.Dropout1d(0.5), nn.AlphaDropout(0.1)]), "0.1, 0.5", "body.0, body.1"),
        (
            nn.ModuleList([nn.Dropout2d(0.5), nn.Dropout3d(0.5), nn.FeatureAlphaDropout(0.5)]),
            "0.5",
            "body.0, body.1, body.2",
        ),
        (
            nn.ModuleList([kind(3, 3, num_layers=2, dropout=0.3) for kind in (nn.GRU, nn.RNN)]),
            "0.3",
            "body.0, body.1",
        ),
    ],
    ids=["layer", "recurrent", "several", "of features", "other recurrent"],
)
def test_dropout(body, share, where):
    assert found(body) == [
        Finding(
            f"dropout with p = {share}",
            where,
            "It is off while scoring and on in training: J of the whole network is not what was minimised, so |grad J| "
            "need not be small at the end of the fit. Refits draw masks of their own: cold refits do not reproduce "
            "the base fit and are refused.",
            "Set p = 0 and fit again (a penalty regularises as well, and is part of J); else trust the scores as far "
            "as refits confirm them.",
            Severity.WARNING,
        )
    ]


def test_slopes_drawn_at_random():
    assert found(nn.Sequential(nn.RReLU(), nn.RReLU(0.1, 0.1), nn.RReLU().eval())) == [
        Finding(
            "slopes of RReLU drawn at random in training",
            "body.0",
            "They are fixed while scoring: J of the whole network is not what was minimised, so |grad J| need not be "
            "small at the end of the fit. Each refit draws values of its own: cold refits do not reproduce the base "
            "fit and are refused.",
            "Use LeakyReLU and fit again; else trust the scores as far as refits confirm them.",
            Severity.WARNING,
        )
    ]


def test_pooling_regions_drawn_at_random():
    body = nn.FractionalMaxPool2d(2, output_size=2)
    expected = Finding(
        "regions of FractionalMaxPool2d drawn at random in every mode",
        "body",
        "The loss of a sample differs from call to call, in evaluation mode too, and scoring stops at this.",
        "Use AdaptiveMaxPool and fit again.",
        Severity.FATAL,
    )
    assert found(body) == found(body.eval()) == [expected]
    assert found(nn.FractionalMaxPool2d(2, output_size=2, _random_samples=torch.rand(1, 4, 2))) == []


@pytest.mark.parametrize(
    "body", [nn.Dropout(0.0), nn.Dropout(0.5).eval(), nn.LSTM(3, 3), nn.Sequential(nn.Linear(3, 3), nn.ReLU())]
)
def test_no_dropout(body):
    assert found(body) == []


def test_fused_attention_and_its_dropout():
    dropout, note = heaviest_first(found(nn.MultiheadAttention(3, 1, dropout=0.1)))
    assert note == Finding(
        "fused attention (MultiheadAttention)",
        "body",
        "Handled: scoring takes the plain kernels, which can be differentiated twice. They are slower and keep the "
        "[heads, s, s] weights of each sample in memory.",
        "None needed; where memory runs short lower attribution.batch_size.",
        Severity.NOTE,
    )
    assert (dropout.what, dropout.where) == ("dropout with p = 0.1", "body")
    (one,) = found(nn.TransformerEncoderLayer(3, 1, 8, dropout=0.0, batch_first=True))
    assert one.where == "body.self_attn"


def test_tied_and_frozen_parameters():
    body = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    assert found(body) == []
    body[1].weight = body[0].weight
    body[1].bias.requires_grad_(False)
    assert found(body) == [
        Finding(
            "tied weights",
            "body.0.weight = body.1.weight",
            "Each counts once, under its first name (body.0.weight); its gradient is that of all its uses.",
            "None needed; in attribution.parameters give the first name.",
            Severity.NOTE,
        ),
        Finding(
            "3 frozen weights in 1 parameter",
            "body.1.bias",
            "They are constants: left out of the scores, the curvature and the refits.",
            "None needed; if they were trained, set requires_grad=True before scoring.",
            Severity.NOTE,
        ),
    ]


def test_mixed_precision_of_parameters():
    module = Classifier(nn.Linear(3, 3))
    module.head.float()
    kinds = [str((dtype, torch.device("cpu"))) for dtype in (torch.float32, torch.float64)]
    assert diagnose(module) == [
        Finding(
            f"The attributed parameters must share one dtype and one device, got {kinds}.",
            "body.weight (float64 on cpu), head.weight (float32 on cpu)",
            "A run stops here with this error.",
            "Cast the module to one dtype (module.double()) and move it to one device before scoring.",
            Severity.FATAL,
        )
    ]
    assert diagnose(module, ["head.*"]) == []


def test_a_pattern_that_matches_nothing():
    assert diagnose(Classifier(nn.Linear(3, 3)), ["hea.*"]) == [
        Finding(
            "No trainable parameter matches ['hea.*'].",
            "attribution.parameters",
            "A run stops here with this error.",
            "The nearest of the 4 names: ['head.bias', 'head.weight'].",
            Severity.FATAL,
        )
    ]


def test_places_are_those_its_author_knows():
    module = Wrapping(Classifier(nn.Sequential(nn.Dropout(0.2), nn.BatchNorm1d(4))))
    assert [one.where for one in diagnose(module)] == ["body.1", "body.0"]
    assert [one.where for one in diagnose(Wrapping(nn.Dropout(0.2)))][-1] == "Dropout"
