"""Weight decay in an optimizer, and the penalty that matches it: whole where it is, silent where it is not."""

import functools

import pytest
import torch
from torch import optim

from ifloo.models import Adapted
from ifloo.objective.findings import Finding, Weight
from ifloo.stages.fit_findings import of_decay
from tests.stages.patients import SGD, Plain, Stated, fit_of, loaded


def decay(module, trained=False, recorded=False):
    return of_decay(module, fit_of(module), trained, recorded)


@pytest.mark.parametrize("kind", [optim.SGD, optim.Adam, optim.NAdam])
def test_decay_inside_the_gradient(kind):
    module = Stated(functools.partial(kind, lr=0.1, weight_decay=0.02))
    assert decay(module) == [
        Finding(
            f"{kind.__name__} decays weights by 0.02, which J does not contain",
            "Stated.configure_optimizers",
            "It minimises J + ½ · 0.02 · ‖θ‖²: the fit refuses it.",
            "Set weight_decay=0 and state this penalty in `penalty`.",
            Weight.FATAL,
        )
    ]


def test_decay_of_a_plain_module_and_the_setting_that_matches():
    optimizer = functools.partial(optim.Adam, weight_decay=0.02)
    assert decay(Adapted(Plain(optimizer)), trained=True) == [
        Finding(
            "Adam decays weights by 0.02, which J does not contain",
            "Plain.configure_optimizers",
            "It minimises J + ½ · 0.02 · ‖θ‖²: |grad J| is not small at its end, and scores and curvature are of "
            "another function.",
            "Give --adapt.l2 0.02.",
            Weight.WARNING,
        )
    ]
    assert decay(Adapted(Plain(optimizer)))[0].fatal
    assert decay(Adapted(Plain(optimizer), l2=0.02)) == []
    assert decay(Adapted(Plain(optimizer), l2=0.01)) != []
    (one,) = decay(Adapted(Plain(functools.partial(optim.RAdam, weight_decay=0.02))))
    assert one.remedy == "Set weight_decay=0 and give --adapt.l2 0.02."


@pytest.mark.parametrize("optimizer", [SGD, optim.Adam, functools.partial(optim.AdamW, weight_decay=0.0), optim.LBFGS])
def test_no_decay(optimizer):
    assert decay(Stated(optimizer)) == decay(Adapted(Plain(optimizer))) == []


def test_the_matching_penalty_has_the_same_minimum():
    """What the finding promises: ∇(J + ½ · 0.02 · ‖θ‖²) is what SGD with that decay steps along."""
    module = Stated(functools.partial(optim.SGD, lr=1.0, weight_decay=0.02), l2=0.0)
    batch = next(iter(loaded(batch_size=120)))
    before = torch.cat([p.detach().flatten().clone() for p in module.parameters()])
    (module.sample_losses(batch).mean() + 0.5 * 0.02 * sum(p.square().sum() for p in module.parameters())).backward()
    expected = torch.cat([p.grad.flatten() for p in module.parameters()])
    module.zero_grad()
    optimizer = module.configure_optimizers()
    module.sample_losses(batch).mean().backward()
    optimizer.step()
    after = torch.cat([p.detach().flatten() for p in module.parameters()])
    torch.testing.assert_close(before - after, expected, rtol=0, atol=1e-15)


def by_group(parameters):
    weight, bias = parameters
    return optim.SGD([{"params": [weight], "weight_decay": 0.1}, {"params": [bias]}], lr=0.1)


def test_decay_of_some_parameters():
    (one,) = decay(Adapted(Plain(by_group)))
    assert one.consequence == "It minimises J + ½ · 0.1 · ‖layer.weight‖²: the fit refuses it."
    assert one.remedy == (
        "Set weight_decay=0 and give this penalty as a function of your own: --adapt.penalty my_code.penalty."
    )


ADAMW = functools.partial(optim.AdamW, weight_decay=0.05)


@pytest.mark.parametrize(
    "optimizer", [ADAMW, functools.partial(optim.NAdam, weight_decay=0.05, decoupled_weight_decay=True)]
)
def test_decay_beside_the_gradient(optimizer):
    name = optimizer.func.__name__
    assert decay(Stated(optimizer)) == [
        Finding(
            f"{name} decays weights by 0.05 beside the gradient",
            "Stated.configure_optimizers",
            "No penalty has these steps, since Adam scales the gradient and not the decay: the fit refuses it.",
            "Set weight_decay=0 (torch's AdamW has 0.01 by default), state ½λ‖θ‖² in `penalty` and fit again; or take "
            "attribution.method ifloo.attribution.Unrolled, which differentiates the steps themselves.",
            Weight.FATAL,
        )
    ]


def test_decay_beside_the_gradient_of_a_plain_module():
    (one,) = decay(Adapted(Plain(ADAMW), l2=0.05), trained=True)
    assert one.consequence == (
        "No penalty has these steps, since Adam scales the gradient and not the decay: J does not contain it, and "
        "scores through a curvature are of another function."
    )
    assert one.remedy.startswith(
        "Set weight_decay=0 (torch's AdamW has 0.01 by default), give --adapt.l2 for a penalty ½λ‖θ‖² and fit again; "
    )
    assert one.weight is Weight.WARNING


def test_decay_that_is_part_of_a_recorded_step():
    assert decay(Stated(ADAMW), recorded=True) == [
        Finding(
            "AdamW decays weights by 0.05 beside the gradient",
            "Stated.configure_optimizers",
            "Handled by methods that follow the recorded run: the decay is part of its steps. J does not contain it, "
            "so curvature methods are of another function.",
            "None needed for the unrolled method.",
            Weight.NOTE,
        )
    ]
