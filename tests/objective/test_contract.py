"""The contract of a model: whole by inheritance, or stated in part and completed by defaults."""

import warnings

import lightning as L
import pytest
import torch
from torch import nn

from ifloo.attribution.influence_function import refuse_decoupled
from ifloo.errors import InputError
from ifloo.models import Adapted, LogisticRegression, MultimodalLM, SampleLossModule
from ifloo.objective import ModelContract, Objective, OutputLosses, Speaker, contract_of
from ifloo.objective.functional import FunctionalLosses
from ifloo.objective.protocol import generates, states_losses, states_outputs
from ifloo.params import ParamSpace, author_name


class Two(nn.Module):
    """Has the two members that a model must have, and inherits nothing."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))

    def sample_losses(self, batch):
        return (batch["x"] @ self.weight).square()

    def penalty(self):
        return self.weight.square().sum()


class More(Two):
    """States every other member as well."""

    wraps = "inner."
    one_by_one = True

    @property
    def decoupled_decay(self):
        return 0.25

    def step_loss(self, batch):
        return self.sample_losses(batch).sum()

    def strong_convexity(self):
        return 2.0


class Plain(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def training_step(self, batch, _):
        return self.layer(batch["x"]).square().mean()


BATCH = {"x": torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)}


def values(contract):
    return (contract.wraps, contract.one_by_one, contract.decoupled_decay, contract.strong_convexity())


def test_two_members_are_enough():
    contract = contract_of(module := Two())
    assert isinstance(contract, ModelContract)
    assert values(contract) == ("", False, 0.0, None)
    assert contract.sample_losses(BATCH).tolist() == [1.0, 9.0]
    assert [contract.step_loss(BATCH).item(), contract.penalty().item()] == [5.0, 5.0]
    assert not isinstance(module, OutputLosses)
    assert not isinstance(module, Speaker)


def test_members_that_are_stated_are_used():
    contract = contract_of(More())
    assert values(contract) == ("inner.", True, 0.25, 2.0)
    assert contract.step_loss(BATCH).tolist() == pytest.approx(10.0, abs=0, rel=0)


def test_one_that_inherits_is_its_own_contract():
    module = LogisticRegression(4, 3)
    assert contract_of(module) is module
    assert values(module) == ("", False, 0.0, 0.01)
    assert isinstance(module, OutputLosses)
    assert not isinstance(module, Speaker)


def test_an_adapted_module_inherits_it():
    by_step, by_function = Adapted(Plain()), Adapted(Plain(), lambda model, batch: model.layer(batch["x"])[:, 0])
    assert values(by_step) == ("model.", True, 0.0, None)
    assert values(by_function) == ("model.", False, 0.0, None)
    assert author_name(by_step, "model.layer.weight") == "layer.weight"


def test_a_decay_beside_the_gradient_is_part_of_the_contract():
    model = MultimodalLM(optimizer="adamw", weight_decay=0.1, embed_dim=8, num_heads=1, num_layers=1)
    assert values(contract_of(model)) == ("", False, 0.1, None)
    assert isinstance(model, Speaker)
    with pytest.raises(InputError, match=r"trained with a decoupled weight decay of 0\.1"):
        refuse_decoupled(model, "influence")


def test_an_attribute_of_an_instance_is_stated_too():
    module = Two()
    module.decoupled_decay = 0.5
    assert values(contract_of(module)) == ("", False, 0.5, None)


def test_a_property_that_fails_is_not_taken_for_one_that_is_not_stated():
    """An AttributeError within a property of an nn.Module surfaces as if there were no such attribute."""

    class Broken(Two):
        @property
        def decoupled_decay(self):
            return self.optimizer_settings["weight_decay"]

    with pytest.raises(AttributeError):
        contract_of(Broken())


class Proxy(nn.Module):
    """Forwards every attribute that it lacks to the module inside."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def __getattr__(self, name):
        if name == "inner":
            return super().__getattr__(name)
        return getattr(self.inner, name)


def compiled(module):
    with warnings.catch_warnings():  # torch's own modules, on the first call of torch.compile
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.compile(module)


class Loose:
    """Forwards attributes without being a module."""

    def __init__(self, inner):
        self.inner = inner

    def __getattr__(self, name):
        return getattr(self.inner, name)


@pytest.mark.parametrize("forwarding", [Proxy, Loose, lambda m: Proxy(Proxy(m)), compiled])
def test_members_that_another_module_states_are_forwarded(forwarding):
    contract = contract_of(forwarding(More()))
    assert values(contract)[1:] == (True, 0.25, 2.0)
    assert contract.sample_losses(BATCH).tolist() == [1.0, 9.0]
    assert contract.step_loss(BATCH).tolist() == pytest.approx(10.0, abs=0, rel=0)
    assert values(contract_of(forwarding(Two()))) == ("", False, 0.0, None)
    with pytest.raises(InputError, match=r"trained with a decoupled weight decay of 0\.25"):
        refuse_decoupled(forwarding(More()), "influence")
    with pytest.raises(InputError, match="does not state its losses"):
        contract_of(forwarding(nn.Linear(2, 1)))


@pytest.mark.parametrize("forwarding", [Proxy, compiled])
def test_outputs_are_forwarded_on_every_python(forwarding):
    module = forwarding(LogisticRegression(4, 3))
    assert states_losses(module)
    assert states_outputs(module)
    assert not generates(module)
    assert not states_outputs(forwarding(Two()))
    assert FunctionalLosses(module, ParamSpace.of(module)).of_outputs is module


def test_a_compiled_module_keeps_the_names_of_its_author():
    module = LogisticRegression(4, 3)
    assert contract_of(compiled(module)) is module
    names = ParamSpace.of(compiled(module)).names
    assert tuple(author_name(compiled(module), name) for name in names) == ParamSpace.of(module).names
    adapted = compiled(Adapted(Plain()))
    assert author_name(adapted, "_orig_mod.model.layer.weight") == "layer.weight"


def test_a_member_that_is_a_buffer_is_stated():
    module = Two()
    module.register_buffer("decoupled_decay", torch.tensor(0.5))
    assert contract_of(module).decoupled_decay == pytest.approx(0.5)


@pytest.mark.parametrize("name", ["one_by_one", "decoupled_decay", "step_loss", "strong_convexity"])
def test_every_optional_property_that_fails_stops_the_program(name):
    def fails(self):
        raise AttributeError("no such setting")

    broken = type("Broken", (Two,), {name: property(fails)})()
    for module in (broken, compiled(broken)):
        with pytest.raises(AttributeError):
            contract_of(module).step_loss(BATCH), contract_of(module).strong_convexity()


@pytest.mark.parametrize("module", [nn.Linear(2, 1), Plain()], ids=lambda m: type(m).__name__)
def test_what_states_no_losses_is_refused(module):
    with pytest.raises(InputError) as caught:
        FunctionalLosses(module, ParamSpace.of(module))
    assert str(caught.value) == (
        f"{type(module).__name__} does not state its losses: it has no sample_losses(batch) or no penalty().\n"
        "  Add both methods, inherit from ifloo.models.SampleLossModule, or wrap it: ifloo.models.Adapted(module)."
    )


def test_outputs_that_are_not_stated():
    module = Two()
    losses = FunctionalLosses(module, ParamSpace.of(module))
    with pytest.raises(InputError) as caught:
        losses.outputs(losses.theta(), BATCH)
    assert str(caught.value) == (
        "Outputs are needed apart from the losses; Two defines no `outputs(batch)` and `output_losses(outputs, batch)`."
        "\n  Define both."
    )


def test_functions_of_theta_are_those_of_the_contract():
    module = More()
    losses = FunctionalLosses(module, ParamSpace.of(module))
    theta = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert losses.sample_losses(theta, BATCH).tolist() == [0.0, 1.0]
    assert [losses.step_loss(theta, BATCH).item(), losses.penalty(theta).item()] == [1.0, 1.0]
    assert module.weight.tolist() == [1.0, 2.0]


def test_a_class_may_name_its_batches():
    class Named(SampleLossModule[dict[str, torch.Tensor]]):
        def sample_losses(self, batch):
            return batch["x"][:, 0]

        def penalty(self):
            return torch.zeros(())

    assert contract_of(Named()).step_loss(BATCH).tolist() == pytest.approx(1.0, abs=0, rel=0)


def test_a_loader_without_a_length_is_refused():
    class Items(torch.utils.data.Dataset):
        def __getitem__(self, row):
            return {"x": torch.zeros(2)}

    loader = torch.utils.data.DataLoader(Items(), sampler=torch.utils.data.SequentialSampler(range(3)))
    with pytest.raises(InputError) as caught:
        Objective.of(Two(), loader)
    assert str(caught.value) == (
        "Attribution needs a map-style dataset (with __len__ and __getitem__); got Items, which has no "
        "__len__.\n  Let __len__ give the number of its samples."
    )
