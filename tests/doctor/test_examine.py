"""The doctor: everything that is wrong at once, nothing where nothing is, and nothing changed by looking."""

import copy
import inspect

import pytest
import torch
from torch import nn, optim
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from ifloo.data import AdaptedData
from ifloo.doctor import DoctorInput, Finding, Severity, examine
from ifloo.doctor.examine import quick_checks
from ifloo.errors import InputError
from ifloo.models import Adapted
from tests.doctor.patients import (
    C,
    D,
    Data,
    N,
    Noisy,
    OwnNoise,
    Plain,
    Stated,
    Stream,
    X,
    Y,
    dataset,
    loaded,
    losses,
    subject,
)
from tests.problems import Logistic


def found(*arguments, **settings):
    return list(examine(subject(*arguments, **settings)).findings)


def error(what, where, remedy):
    """The finding of an error."""
    return Finding(what, where, "A run stops here with this error.", remedy, Severity.FATAL)


def test_nothing_is_found_where_nothing_is_wrong():
    assert found() == []
    assert found(Adapted(Plain(), losses)) == []
    assert found(Adapted(Plain(lambda p: optim.Adam(p, weight_decay=0.1)), losses, l2=0.1)) == []


# Weights.


def test_a_minimum_and_away_from_it():
    problem = Logistic.make(n=100)
    module = copy.deepcopy(problem.module)
    at = DoctorInput(module, Data(problem.loader()), subject().trainer, subject().settings, "models/base.pth")
    made = examine(at)
    assert made.findings == ()
    assert made.stationarity.grad_norm < 1e-13
    with torch.no_grad():
        next(module.parameters()).add_(0.5)
    made = examine(at)
    there = made.stationarity
    assert made.findings == (
        Finding(
            f"the checkpoint is not at a minimum: |grad J| = {there.grad_norm:.2e}",
            "models/base.pth",
            f"One sample contributes about {there.sample_share:.2e} to grad J. Influence is the derivative of the "
            "minimiser; away from it the scores predict no refit.",
            "Train longer (`ifloo fit` by LBFGS ends at 1e-10), or take the scores as a ranking at best. Or: "
            "--attribution.method.class_path=ifloo.attribution.GradientDot "
            "scores by first derivatives alone, which needs no "
            "minimum (a fit with optimizer LBFGS cannot be recorded, as the unrolled method requires).",
            Severity.WARNING,
        ),
    )
    assert made.fatal == 0


def test_a_method_that_needs_no_minimum():
    (one,) = found(checkpoint="base.pth", unrolled=True)
    assert one.severity is Severity.NOTE
    assert one.consequence.endswith(" The method asked for needs no minimum; scores through a curvature would.")
    assert found(unrolled=True) == []  # before the fit there is nothing to say of its end


# Errors of others, with their text.


def test_data_that_are_not_finite():
    x = X.clone()
    x[2, 0] = float("nan")
    assert found(loader=loaded(TensorDataset(x, Y, torch.arange(N)))) == [
        error(
            f"The training data hold NaN or infinity: batch 0, row 2, a tensor of shape [{N}, {D}].",
            "Data.train_dataloader()",
            "Clean the data; no score can be computed from them.",
        )
    ]


def test_numbers_that_repeat_are_no_ids():
    lengths = torch.arange(N).remainder(5) + 1
    (one,) = found(loader=loaded(TensorDataset(X, Y, lengths)))
    assert (one.what, one.severity) == (
        "a third item of whole numbers that are not the positions of the samples",
        Severity.NOTE,
    )


STREAM = error(
    "Attribution needs a map-style dataset (with __len__ and __getitem__); got Stream, an IterableDataset.",
    "Data.train_dataloader()",
    "Give a dataset whose __getitem__ returns the sample at a position.",
)
SAMPLER = error(
    "The training loader draws with WeightedRandomSampler; J is the mean over every sample once.",
    "Data.train_dataloader()",
    "The fit has another objective, in which some samples count more than others. Use shuffle=True or False; for a "
    "part of the data wrap the dataset (torch.utils.data.Subset).",
)
LOADERS = {
    "stream": (lambda: DataLoader(Stream(), batch_size=7), STREAM),
    "sampler": (lambda: loaded(sampler=WeightedRandomSampler([1.0] * N, N)), SAMPLER),
    "nothing": (
        lambda: loaded(dataset(0)),
        error("The training data hold no sample.", "Data.train_dataloader()", "Change what the first line names."),
    ),
}


@pytest.mark.parametrize(("loader", "expected"), LOADERS.values(), ids=LOADERS)
@pytest.mark.parametrize("plain", [True, False])
def test_loaders_that_are_refused(loader, expected, plain):
    data = Data(loader())
    assert found(data=AdaptedData(data) if plain else data) == [expected]


def test_a_data_module_that_fails():
    class Failing(Data):
        def train_dataloader(self):
            raise FileNotFoundError("no such file: rows.csv")

    assert found(data=Failing()) == [
        error(
            "train_dataloader of Failing failed: FileNotFoundError: no such file: rows.csv "
            f"(tests/doctor/test_examine.py:{inspect.getsourcelines(Failing)[1] + 2})",
            "Failing.train_dataloader()",
            "Change what the first line names.",
        )
    ]


def test_a_loss_across_the_batch():
    class Centred(Stated):
        def sample_losses(self, batch):
            return super().sample_losses((batch[0] - batch[0].mean(0), *batch[1:]))

    (one,) = found(Centred())
    assert one.what.startswith("The loss of a sample differs alone and in a batch: ")
    assert (one.where, one.severity) == ("Centred", Severity.FATAL)
    assert one.remedy == (
        "Its cause is most often BatchNorm in train mode, or a loss taken across the batch. Per-sample influence needs "
        "a loss that belongs to the sample alone."
    )


def test_a_loss_that_one_sample_has_not():
    def across(logits, labels):
        return F.batch_norm(logits, None, None, training=True).mean()

    watched, refused, note = (found(Plain(more=across)) + [None] * 3)[:3]
    assert refused.what == "F.batch_norm by the statistics of the batch"
    assert (watched.where, watched.severity) == ("Plain", Severity.FATAL)
    failure = "training_step of Plain failed on one sample: ValueError: Expected more than 1 value"
    assert watched.what.startswith(failure)
    assert note is None


def test_everything_at_once():
    class Wrong(Stated):
        def __init__(self):
            super().__init__(lambda p: optim.SGD(p, lr=0.1, weight_decay=0.1))
            self.norm = nn.BatchNorm1d(D, track_running_stats=False, dtype=torch.float64)
            self.layer = nn.Sequential(self.layer, nn.Dropout(0.1))

    made = examine(subject(Wrong(), loaded(Noisy(), batch_size=50, drop_last=True), precision="bf16-mixed"))
    assert [(one.severity.value, one.what) for one in made.findings if "differ, by" not in one.what] == [
        ("fatal", "BatchNorm1d without running statistics (track_running_stats=False)"),
        ("fatal", "SGD decays weights by 0.1, which J does not contain"),
        ("warning", "dropout with p = 0.1"),
        ("warning", "drop_last=True with 120 samples in batches of 50"),
        ("warning", "training in precision bf16-mixed"),
    ]
    assert made.fatal == 2
    assert made.stationarity is None


def test_what_a_recorded_fit_refuses():
    module = Stated(optim.RMSprop)
    assert [one.what for one in found(module, unrolled=True)] == ["optimizer RMSprop, which no recorded step contains"]
    assert found(module) == []


def test_a_decay_that_no_curvature_has():
    class Decayed(Stated):
        decoupled_decay = 0.05

    first, second = found(Decayed(lambda p: optim.AdamW(p, weight_decay=0.05)), checkpoint="base.pth")[:2]
    assert first == error(
        "influence inverts the curvature of J, and this model was trained with a decoupled weight decay of 0.05: the "
        "decay is part of the optimizer's step and not of J, so that the curvature would be that of another function.",
        "Decayed.decoupled_decay",
        "Use the unrolled method, which differentiates the steps themselves, or put the decay into `penalty`.",
    )
    assert second.what == "AdamW decays weights by 0.05 beside the gradient"


def test_lbfgs_in_batches():
    (one,) = found(Stated(optim.LBFGS))
    assert one.what.endswith("full precision; got 3 batches an epoch (batch_size < n).")
    assert found(Stated(optim.LBFGS), loaded(batch_size=N)) == []


# Nothing changes.


def test_looking_changes_nothing():
    module = Plain()
    module.layer = nn.Sequential(nn.Linear(D, C), nn.BatchNorm1d(C), nn.Dropout(0.5)).double()
    examined = subject(module)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    modes = [m.training for m in examined.module.modules()]
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    quick_checks(examined)
    assert torch.equal(torch.rand(4), expected)
    examine(examined)
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert [m.training for m in examined.module.modules()] == modes
    assert module._trainer is None
    assert examined.module._trainer is None
    assert "log" not in module.__dict__


# The door.


def test_warnings_at_the_door():
    module = Stated()
    module.layer = nn.Sequential(nn.Linear(D, C), nn.BatchNorm1d(C), nn.MultiheadAttention(C, 1)).double()
    here = subject(module, loaded(drop_last=True), gradient_clip_val=1.0, accumulate_grad_batches=2)
    assert [one.what for one in quick_checks(here)] == [
        "BatchNorm1d in training mode",
        "drop_last=True with 120 samples in batches of 50",
        "gradients clipped at norm 1",
    ]
    assert quick_checks(subject()) == []
    decaying = Adapted(Plain(lambda p: optim.SGD(p, lr=0.1, weight_decay=0.1)))
    assert [one.what for one in quick_checks(subject(decaying, checkpoint="base.pth"))] == [
        "SGD decays weights by 0.1, which J does not contain"
    ]
    assert quick_checks(subject(decaying)) == []  # the fit refuses it in its own words


def test_samples_that_change_stop_a_run_at_the_door():
    with pytest.raises(InputError) as caught:
        quick_checks(subject(loader=loaded(OwnNoise())))
    first, *others = str(caught.value).splitlines()
    assert first.startswith("Data.train_dataloader(): two reads of training sample ")
    assert others == [
        "  Scores would be of another sample than was trained on, and of another one each time: its random numbers do "
        "not come from the generators of torch, numpy and Python, which are seeded for each sample.",
        "  Draw them from these generators; or turn random transforms off, for the fit too.",
    ]
    (warned,) = quick_checks(subject(loader=loaded(Noisy())))
    assert warned.what.startswith("two reads of training sample 3 differ, by up to 0.")


@pytest.mark.parametrize(("loader", "expected"), [LOADERS["stream"], LOADERS["sampler"]], ids=["stream", "sampler"])
def test_what_a_run_refuses_itself_is_left_to_it(loader, expected):
    assert quick_checks(subject(loader=loader())) == []
    with pytest.raises(InputError) as caught:
        quick_checks(subject(data=AdaptedData(Data(loader()))))
    assert str(caught.value).splitlines()[0] == expected.what


class Shifted(Data):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return [batch[0] + 1, *batch[1:]]


def test_hooks_that_scores_apply_themselves_are_no_finding():
    changed = "batches changed on their way from the loader to the model"
    assert quick_checks(subject(Plain(), data=Shifted())) == []
    assert [one.what for one in quick_checks(subject(data=Shifted()))] == [changed]
