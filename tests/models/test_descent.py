"""How the learning rate rises and falls, by hand; each optimizer with its settings; what is refused."""

import pickle

import pytest
import torch
from torch import nn, optim

from ifloo.errors import InputError
from ifloo.models.warmup_cosine import WarmupCosine

ROOT = 2**0.5 / 2  # cos 45°


def descent(**changes):
    settings = {
        "optimizer": "sgd",
        "lr": 0.5,
        "momentum": 0.8,
        "betas": (0.7, 0.95),
        "epsilon": 1e-6,
        "weight_decay": 0.0,
        "warmup": 0.0,
        "final_lr": 0.0,
    }
    return WarmupCosine(**settings | changes)


def weight():
    return nn.Parameter(torch.zeros(2, dtype=torch.float64))


def rates(made, steps):
    """The learning rate of each step, as the optimizer has it when it takes the step."""
    found = made.over([weight()], steps)
    assert found["lr_scheduler"]["interval"] == "step"
    optimizer, schedule = found["optimizer"], found["lr_scheduler"]["scheduler"]
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


# (warm-up, share left, rates of the steps in units of the highest)
RATES = {
    "two steps up, four down": (1 / 3, 0.0, [0.5, 1, (1 + ROOT) / 2, 0.5, (1 - ROOT) / 2, 0]),
    "down to a fifth": (1 / 3, 0.2, [0.5, 1, 0.6 + 0.4 * ROOT, 0.6, 0.6 - 0.4 * ROOT, 0.2]),
    "no warm-up": (0.0, 0.0, [1, (1 + ROOT) / 2, 0.5, (1 - ROOT) / 2, 0]),
    "less than a step of it": (0.05, 0.0, [1, (1 + ROOT) / 2, 0.5, (1 - ROOT) / 2, 0]),
    "up all the way": (1.0, 0.0, [0.25, 0.5, 0.75, 1]),
    "constant": (0.0, 1.0, [1, 1, 1]),
    "one step": (0.1, 0.0, [1]),
}


@pytest.mark.parametrize(("warmup", "final", "truth"), RATES.values(), ids=RATES)
def test_rates(warmup, final, truth):
    found = rates(descent(warmup=warmup, final_lr=final), len(truth))
    assert found == pytest.approx([0.5 * share for share in truth], rel=1e-14, abs=1e-16)


def test_a_fit_of_no_step_has_an_optimizer():
    assert rates(descent(), 0) == []


def test_the_schedule_travels_between_processes():
    schedule = descent(warmup=0.5).over([weight()], 4)["lr_scheduler"]["scheduler"]
    (rate,) = schedule.lr_lambdas
    assert [pickle.loads(pickle.dumps(rate))(k) for k in range(4)] == pytest.approx([0.5, 1, 0.5, 0])


ADAPTIVE = {"betas": (0.7, 0.95), "eps": 1e-6, "amsgrad": False, "maximize": False}
OPTIMIZERS = {
    "sgd": (optim.SGD, {"momentum": 0.8, "dampening": 0, "nesterov": False, "weight_decay": 0.0}),
    "adam": (optim.Adam, {**ADAPTIVE, "weight_decay": 0.0}),
    "adamw": (optim.AdamW, {**ADAPTIVE, "weight_decay": 0.03}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(name):
    kind, settings = OPTIMIZERS[name]
    parameter = weight()
    optimizer = descent(optimizer=name, weight_decay=settings["weight_decay"]).over([parameter], 3)["optimizer"]
    assert type(optimizer) is kind
    (group,) = optimizer.param_groups
    assert group["params"] == [parameter]
    assert group["lr"] == pytest.approx(0.5)
    assert {key: group[key] for key in settings} == settings


def test_adamw_decays_nothing_unless_told():
    """The default of torch is 0.01, outside J."""
    (group,) = descent(optimizer="adamw").over([weight()], 3)["optimizer"].param_groups
    assert group["weight_decay"] == 0


REFUSALS = [
    ({"lr": 0.0}, "lr must be a finite number > 0, got 0.0."),
    ({"lr": -1.0}, "lr must be a finite number > 0, got -1.0."),
    ({"lr": float("inf")}, "lr must be a finite number > 0, got inf."),
    ({"lr": float("nan")}, "lr must be a finite number > 0, got nan."),
    ({"warmup": 1.5}, "warmup must be a share from 0 to 1, got 1.5."),
    ({"warmup": -0.1}, "warmup must be a share from 0 to 1, got -0.1."),
    ({"final_lr": 2.0}, "final_lr must be a share from 0 to 1, got 2.0."),
    ({"final_lr": float("nan")}, "final_lr must be a share from 0 to 1, got nan."),
    *(
        (
            {"optimizer": name, "weight_decay": 0.01},
            f"weight_decay = 0.01 with optimizer {name} would be a penalty that J does not contain.\n"
            "  Give it as l2_reg, or use optimizer adamw, whose decay is a part of its step.",
        )
        for name in ("sgd", "adam")
    ),
]


@pytest.mark.parametrize(("changes", "message"), REFUSALS, ids=lambda x: str(x) if isinstance(x, dict) else "")
def test_refusals(changes, message):
    with pytest.raises(InputError) as caught:
        descent(**changes)
    assert str(caught.value) == message


def test_a_fit_without_an_end():
    with pytest.raises(InputError) as caught:
        descent().over([weight()], float("inf"))
    assert str(caught.value) == (
        "The learning rate follows the number of steps of the fit, and this fit has no end.\n"
        "  Set max_epochs or max_steps of the Trainer."
    )
