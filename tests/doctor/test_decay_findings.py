"""Weight decay in an optimizer, and the penalty that matches it: whole where it is, silent where it is not."""

import functools

import pytest
import torch
from torch import optim

from ifloo.doctor.finding import Finding, Severity
from ifloo.doctor.fit_findings import decay_findings
from ifloo.models import Adapted
from ifloo.models.decay import COUPLED, decoupled
from tests.doctor.patients import SGD, Plain, Stated, fit_of, loaded

OF_STEPS = (
    "`ifloo fit` and then `ifloo influence`, both with "
    "--attribution.method.class_path=ifloo.attribution.Unrolled, record a fit "
    "and differentiate its steps, which needs no minimum."
)
OF_GRADIENTS = (
    "--attribution.method.class_path=ifloo.attribution.GradientDot "
    "scores by first derivatives alone, which needs no minimum (a "
    "fit with {} cannot be recorded, as the unrolled method requires)."
)


def decay(module, trained=False, recorded=False):
    return decay_findings(module, fit_of(module), trained, recorded)


@pytest.mark.parametrize("kind", [optim.SGD, optim.Adam, optim.NAdam])
def test_decay_inside_the_gradient(kind):
    module = Stated(functools.partial(kind, lr=0.1, weight_decay=0.02))
    assert decay(module) == [
        Finding(
            f"{kind.__name__} decays weights by 0.02, which J does not contain",
            "Stated.configure_optimizers",
            "It minimises J + ½ · 0.02 · ‖θ‖²: the fit refuses it.",
            "Set weight_decay=0 and state this penalty in `penalty`.",
            Severity.FATAL,
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
            Severity.WARNING,
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


OF_OTHERS = [  # Muon takes no biases, and not every version of torch has it
    *(
        functools.partial(k, weight_decay=0.05, decoupled_weight_decay=True)
        for k in (optim.Adam, optim.NAdam, optim.RAdam)
    ),
    functools.partial(optim.Adafactor, weight_decay=0.05),
]


@pytest.mark.parametrize("optimizer", [ADAMW, *OF_OTHERS], ids=lambda one: one.func.__name__)
def test_the_steps_of_a_decay_beside_the_gradient_are_those_of_no_penalty(optimizer):
    """Where the gradient is zero a decayed weight shrinks by lr · λ, as no function of a gradient does."""
    parameter = torch.nn.Parameter(torch.full((3,), 2.0, dtype=torch.float64))
    made = optimizer([parameter], lr=0.1)
    assert decoupled(made, made.param_groups[0])
    parameter.grad = torch.zeros_like(parameter)
    made.step()
    torch.testing.assert_close(parameter.detach(), torch.full((3,), 2.0 * (1 - 0.1 * 0.05), dtype=torch.float64))


@pytest.mark.parametrize("kind", [*COUPLED, optim.RAdam, optim.Adamax, optim.Adadelta])
def test_a_decay_inside_the_gradient_is_not_decoupled(kind):
    """The step from θ under a zero loss is that without decay under the gradient λθ."""
    steps = []
    for decay, gradient in ((0.05, 0.0), (0.0, 0.05 * 2.0)):
        parameter = torch.nn.Parameter(torch.full((3,), 2.0, dtype=torch.float64))
        made = kind([parameter], lr=0.1, weight_decay=decay)
        parameter.grad = torch.full_like(parameter, gradient)
        made.step()
        steps.append(parameter.detach())
        assert not decoupled(made, made.param_groups[0])
    torch.testing.assert_close(*steps, rtol=1e-12, atol=0)


@pytest.mark.parametrize("optimizer", [ADAMW, *OF_OTHERS], ids=lambda one: one.func.__name__)
def test_decay_beside_the_gradient(optimizer):
    name = optimizer.func.__name__
    assert decay(Stated(optimizer)) == [
        Finding(
            f"{name} decays weights by 0.05 beside the gradient",
            "Stated.configure_optimizers",
            f"No penalty has these steps, since {name} scales the gradient and not the decay: the fit refuses it.",
            "Set weight_decay=0 (torch's AdamW has 0.01 by default), state ½λ‖θ‖² in `penalty` and fit again. Or: "
            + (OF_STEPS if name in ("Adam", "AdamW") else OF_GRADIENTS.format(f"optimizer {name}")),
            Severity.FATAL,
        )
    ]


def test_decay_beside_the_gradient_of_a_plain_module():
    (one,) = decay(Adapted(Plain(ADAMW), l2=0.05), trained=True)
    assert one.consequence == (
        "No penalty has these steps, since AdamW scales the gradient and not the decay: J does not contain it, and "
        "scores through a curvature are of another function."
    )
    assert one.remedy.startswith(
        "Set weight_decay=0 (torch's AdamW has 0.01 by default), give --adapt.l2 for a penalty ½λ‖θ‖² and fit again. "
    )
    assert one.remedy.endswith(OF_STEPS)
    assert one.severity is Severity.WARNING


def test_the_unrolled_method_is_no_remedy_where_no_fit_can_be_recorded():
    module = Plain(ADAMW)
    module.norm = torch.nn.BatchNorm1d(3)
    (one,) = decay(Adapted(module), trained=True)
    assert one.remedy.endswith(OF_GRADIENTS.format("batch statistics in norm"))


@pytest.mark.parametrize("optimizer", [ADAMW, OF_OTHERS[0]], ids=lambda one: one.func.__name__)
def test_decay_that_is_part_of_a_recorded_step(optimizer):
    assert decay(Stated(optimizer), recorded=True) == [
        Finding(
            f"{optimizer.func.__name__} decays weights by 0.05 beside the gradient",
            "Stated.configure_optimizers",
            "Handled by methods that follow the recorded run: the decay is part of its steps. J does not contain it, "
            "so curvature methods are of another function.",
            "None needed for the unrolled method.",
            Severity.NOTE,
        )
    ]


def test_a_step_that_no_recorder_knows_is_no_part_of_a_recording():
    (one,) = decay(Stated(OF_OTHERS[1]), recorded=True)
    assert (one.what, one.severity) == ("NAdam decays weights by 0.05 beside the gradient", Severity.FATAL)


def test_groups_of_both_kinds_are_two_findings():
    def both(parameters):
        weight, bias = parameters
        beside = {"params": [bias], "weight_decay": 0.2, "decoupled_weight_decay": True}
        return optim.Adam([{"params": [weight], "weight_decay": 0.1}, beside])

    first, second = decay(Stated(both))
    assert first.what == "Adam decays weights by 0.2 beside the gradient"
    assert second.what == "Adam decays weights by 0.1, which J does not contain"
    assert second.consequence == "It minimises J + ½ · 0.1 · ‖layer.weight‖²: the fit refuses it."


def test_decay_beside_the_gradient_is_not_left_to_the_penalty_of_the_same_size():
    (one,) = decay(Adapted(Plain(OF_OTHERS[0]), l2=0.05))
    assert (one.what, one.severity) == ("Adam decays weights by 0.05 beside the gradient", Severity.FATAL)
