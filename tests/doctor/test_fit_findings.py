"""What a fit does that J does not contain: whole where it is, silent where it is not."""

import functools
import inspect
import math

import pytest
import torch
from torch import nn, optim

from ifloo.doctor.finding import Finding, Severity
from ifloo.doctor.fit_findings import lbfgs_findings, read_optimizers, recording_findings, settings_findings
from ifloo.errors import InputError
from tests.doctor.patients import Stated, fit_of, loaded, trainer


def test_nothing_to_find():
    assert settings_findings(fit_of().settings) == []
    assert settings_findings(fit_of(precision="64-true").settings) == []


def test_reduced_precision():
    assert settings_findings(fit_of(precision="bf16-mixed").settings) == [
        Finding(
            "training in precision bf16-mixed",
            "trainer.precision",
            "Scores are made in the precision of the weights. A fit in 16 bits stops where its rounding hides |grad "
            "J|, so its end is no minimum of J to more than three digits, and refits differ by rounding as well.",
            "Set trainer.precision to 32-true or 64-true and fit again.",
            Severity.WARNING,
        )
    ]


def test_clipping_and_accumulation():
    assert settings_findings(
        fit_of(gradient_clip_val=0.5, gradient_clip_algorithm="value", accumulate_grad_batches=2).settings
    ) == [
        Finding(
            "gradients clipped at value 0.5",
            "trainer.gradient_clip_val",
            "Harmless where no step near the end is clipped: the minimum of J is the same. Clipped steps are not those "
            "of J; refits repeat the clipping, scores do not contain it.",
            "Leave it out, with a smaller learning rate if the fit then diverges.",
            Severity.WARNING,
        ),
        Finding(
            "steps on 2 batches together",
            "trainer.accumulate_grad_batches",
            "Another batch size, and no part of J; refits repeat it.",
            "None needed; a recorded run (methods that follow the training) needs a larger batch size instead.",
            Severity.NOTE,
        ),
    ]
    assert settings_findings(fit_of(gradient_clip_val=1).settings)[0].what == "gradients clipped at norm 1"


def test_what_a_checkpoint_was_fitted_with_comes_first():
    assert [one.what for one in settings_findings(fit_of(recorded={"precision": "16-mixed"}).settings)] == [
        "training in precision 16-mixed"
    ]
    assert settings_findings(fit_of(recorded={"precision": "32-true"}, precision="bf16-mixed").settings) == []


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({}, 6),
        ({"accumulate_grad_batches": 2}, 4),
        ({"max_steps": 5}, 5),
        ({"max_steps": 50}, 6),
        ({"max_epochs": -1, "max_steps": 7}, 7),
        ({"max_epochs": -1}, math.inf),
    ],
)
def test_steps_of_a_fit_are_those_a_trainer_estimates(settings, steps):
    """120 samples in batches of 50: three steps an epoch."""
    fit = fit_of(**settings)
    assert fit.stand_in.estimated_stepping_batches == steps
    real = trainer(**settings)
    real.strategy.connect(Stated())
    real._data_connector.attach_data(Stated(), train_dataloaders=loaded())
    assert real.estimated_stepping_batches == steps


# Optimizers in every form, and those that cannot be made.


@pytest.mark.parametrize(
    "form",
    [
        lambda o, s: o,
        lambda o, s: [o],
        lambda o, s: ([o], [s]),
        lambda o, s: {"optimizer": o, "lr_scheduler": {"scheduler": s, "interval": "step"}},
        lambda o, s: ({"optimizer": o},),
    ],
)
def test_forms_that_lightning_takes(form):
    class Formed(Stated):
        def configure_optimizers(self):
            made = optim.SGD(self.parameters(), lr=0.1)
            return form(made, optim.lr_scheduler.StepLR(made, 1))

    assert [type(one) for one in fit_of(Formed()).optimizers] == [optim.SGD]


def test_a_module_without_optimizer():
    class Without(Stated):
        def configure_optimizers(self):
            return None

    assert fit_of(Without()).optimizers == []


def line_of(function):
    return inspect.getsourcelines(function)[1]


def raising(error):
    class Raising(Stated):
        def configure_optimizers(self):
            raise error

    module, fit = Raising(), fit_of()
    return read_optimizers(module, fit)


def test_optimizers_that_cannot_be_made():
    assert raising(RuntimeError("There is no world yet. Wait.")) == [
        Finding(
            "optimizers that could not be examined",
            "Raising.configure_optimizers",
            "Whether they decay weights is not known: RuntimeError: There is no world yet. Wait. "
            f"(tests/doctor/test_fit_findings.py:{line_of(raising) + 3}).",
            "See to it that weight_decay is 0, or that J has the penalty that matches (½λ‖θ‖² for SGD and Adam).",
            Severity.NOTE,
        )
    ]
    assert raising(InputError("lr must be > 0.\n  Raise it.")) == [
        Finding(
            "lr must be > 0.",
            "Raising.configure_optimizers",
            "A run stops here with this error.",
            "Raise it.",
            Severity.FATAL,
        )
    ]


# What a fit refuses.


def test_lbfgs_on_no_fixed_function():
    module = Stated(optim.LBFGS)
    assert lbfgs_findings(fit_of(module, gradient_clip_val=1.0)) == [
        Finding(
            "Optimizer lbfgs minimises one fixed function: it needs the full batch, no accumulation, no clipping and "
            "full precision; got 3 batches an epoch (batch_size < n); gradient_clip_val = 1.",
            "model.optimizer",
            "A run stops here with this error.",
            "Raise --data.batch_size to the number of training samples and leave the others out, or use "
            "--model.optimizer sgd or adamw.",
            Severity.FATAL,
        )
    ]
    assert lbfgs_findings(fit_of(module, loaded(batch_size=120))) == []
    assert lbfgs_findings(fit_of(Stated(), gradient_clip_val=1.0)) == []


def test_steps_that_cannot_be_recorded():
    module = Stated(functools.partial(optim.SGD, lr=0.1, weight_decay=0.1))
    module.layer = nn.Sequential(nn.Linear(4, 3, dtype=torch.float64), nn.Dropout(0.2))
    found = recording_findings(module, fit_of(module, accumulate_grad_batches=2))
    assert found[0] == Finding(
        "accumulation over 2 batches, which no recorded step contains",
        "trainer, model",
        "A method that follows the training run is asked for, and the fit refuses to record this.",
        "Raise the batch size instead, or choose methods that need no recorded run.",
        Severity.FATAL,
    )
    assert [(one.what, one.remedy) for one in found[1:]] == [
        (
            "dropout in layer.1, which no recorded step contains",
            "Set it to 0, or choose methods that need no recorded run.",
        ),
        (
            "weight decay inside the gradient (0.1), which no recorded step contains",
            "State it in the module's penalty, or choose methods that need no recorded run.",
        ),
    ]
    assert recording_findings(Stated(), fit_of(Stated())) == []
