"""Names, and the one vector format."""

import pytest
import torch
from torch import nn

from ifloo.errors import InputError
from ifloo.params import ParamSpace


def _model():
    return nn.ModuleDict({"body": nn.Linear(3, 2), "head": nn.Linear(2, 1)})


def test_flat_and_named_are_inverse_for_any_number_of_vectors():
    model = _model()
    model.temperature = nn.Parameter(torch.ones(()))  # a parameter without dimensions
    space = ParamSpace.of(model)
    assert space.size == 3 * 2 + 2 + 2 + 1 + 1
    for k in ((), (4,), (2, 4)):
        flat = torch.randn(*k, space.size)
        named = space.unflatten(flat)
        assert named["body.weight"].shape == (*k, 2, 3)
        assert torch.equal(space.flatten(named, batch_dims=len(k)), flat)


def test_values_round_trip_and_are_copies():
    model, space = _model(), ParamSpace.of(_model())
    values = torch.arange(space.size, dtype=torch.float32)
    space.write_to(model, values)
    copy = space.values_of(model)
    assert torch.equal(copy, values)
    copy += 1
    assert torch.equal(space.values_of(model), values)


def test_a_choice_of_names_leaves_frozen_ones_out():
    model = _model()
    model["head"].bias.requires_grad_(False)
    assert ParamSpace.of(model, ["head.*"]).names == ("head.weight",)
    assert ParamSpace.of(model, ["*.bias", "head.*"]).names == ("body.bias", "head.weight")


def test_tied_weights_count_once():
    model = _model()
    model["again"] = model["head"]
    assert ParamSpace.of(model).size == 11


@pytest.mark.parametrize(
    ("patterns", "change", "message"),
    [
        (
            ["heed.*"],
            lambda m: m,
            "No trainable parameter matches ['heed.*'].\n  The nearest of the 4 names: ['head.bias', 'head.weight'].",
        ),
        (
            ["*"],
            lambda m: m.requires_grad_(False),
            "The module has no trainable parameter (requires_grad=True): there is nothing to attribute.",
        ),
        (
            ["*"],
            lambda m: m["head"].double(),
            "The attributed parameters must share one dtype and one device, got ["
            "\"(torch.float32, device(type='cpu'))\", \"(torch.float64, device(type='cpu'))\"].\n"
            "  Cast the module to one dtype (module.double()) and move it to one device before scoring.",
        ),
    ],
)
def test_refusals(patterns, change, message):
    model = _model()
    change(model)
    with pytest.raises(InputError) as caught:
        ParamSpace.of(model, patterns)
    assert str(caught.value) == message
