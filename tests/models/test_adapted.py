"""Plain LightningModules under the contract: their losses, names, hooks and training stay their own."""

import copy
import functools
import pickle
from typing import Any

import lightning as L
import pytest
import torch
from jsonargparse import ArgumentParser
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from ifloo.attribution import InfluenceEngine
from ifloo.curvature import Damped, Hessian
from ifloo.errors import InputError
from ifloo.former_names import FormerNameWarning
from ifloo.models import Adapted, AdaptedOutputs, LossesOfOutputs
from ifloo.objective import Identified, Objective, SampleWeights
from ifloo.objective.loaders import identified
from ifloo.params import ParamSpace
from ifloo.solvers import CG

TRAINER: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Net(L.LightningModule):
    def __init__(self, hidden: int = 4, decay: float = 0.0, kind: type = torch.optim.SGD) -> None:
        super().__init__()
        self.save_hyperparameters("hidden")
        self.decay, self.kind = decay, kind
        self.layers = nn.Sequential(nn.Linear(3, hidden), nn.Tanh())
        self.head = nn.Linear(hidden, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        loss = cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return {"loss": loss}

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.kind(self.parameters(), lr=0.1, weight_decay=self.decay)


class Nested(Net):
    def training_step(self, batch: Any) -> Tensor:  # type: ignore[override]
        return cross_entropy(self(batch["inputs"][0]), batch["y"])


class Reads(Net):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return cross_entropy(self(batch["inputs"][0]), batch["y"]) * len(batch["name"][0])


class NoLoss(Net):
    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        return None


class ByHand(Net):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class NoStep(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)


def losses_of(model: Any, batch: Any) -> Tensor:
    return cross_entropy(model(batch[0]), batch[1], reduction="none")


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(12, 3, generator=draw, dtype=torch.float64)
    return x, (x[:, 0] > 0).long()


@pytest.fixture
def net() -> Net:
    torch.manual_seed(1)
    return Net().double()


def test_the_training_step_on_batches_of_one_gives_the_losses(net, data):
    torch.testing.assert_close(Adapted(net).sample_losses(data), losses_of(net, data), rtol=1e-14, atol=0)


def test_nested_batches_and_a_step_without_index(data):
    torch.manual_seed(1)
    net = Nested().double()
    batch = {"inputs": [data[0]], "y": data[1], "name": ["a"] * 12, "scale": torch.tensor(2.0)}
    torch.testing.assert_close(Adapted(net).sample_losses(batch), losses_of(net, data), rtol=1e-14, atol=0)


def test_a_part_that_is_no_tensor_is_an_error_where_it_is_read(data):
    with pytest.raises(InputError) as caught:
        Adapted(Reads().double()).sample_losses({"inputs": [data[0]], "y": data[1], "name": ["a"] * 12})
    assert str(caught.value) == (
        "training_step reads a part of the batch that is not a tensor (a list of str), but single samples are passed "
        "to it as tensors only.\n"
        "  Give the losses as a function of your own (sample_losses), or put tensors into the batch."
    )


def test_a_step_without_a_loss(data):
    with pytest.raises(InputError) as caught:
        Adapted(NoLoss().double()).sample_losses(data)
    assert str(caught.value) == (
        "NoLoss.training_step on a batch of one gave NoneType as its loss; one number is needed.\n"
        "  Give the losses as a function of your own: sample_losses(model, batch) -> [b]."
    )


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (
            ByHand,
            "ByHand optimizes by hand (automatic_optimization = False): its training_step takes optimizer "
            "steps, so that it cannot be run for the loss of a sample, whatever it returns.\n"
            "  Give the losses as a function of your own: sample_losses(model, batch) -> [b].",
        ),
        (
            NoStep,
            "NoStep has no training_step that could be run on one sample.\n"
            "  Give the losses as a function of your own: sample_losses(model, batch) -> [b].",
        ),
    ],
)
def test_modules_without_a_step_that_could_be_run(made, said):
    with pytest.raises(InputError) as caught:
        Adapted(made())
    assert str(caught.value) == said
    assert Adapted(made(), losses_of).losses is losses_of


def test_a_negative_penalty(net):
    with pytest.raises(InputError) as caught:
        Adapted(net, l2=-1.0)
    assert str(caught.value) == "l2 must be a finite number >= 0, got -1.0."


def test_the_penalty_is_both_parts(net):
    with torch.no_grad():
        found = Adapted(net, penalty=lambda model: model.head.bias.sum(), l2=0.5).penalty()
        squares = sum(float(p.square().sum()) for p in net.parameters())
        assert float(found) == pytest.approx(0.25 * squares + float(net.head.bias.sum()), rel=1e-13)
        assert torch.equal(Adapted(net).penalty(), torch.zeros((), dtype=torch.float64))


@pytest.mark.parametrize("l2", [0.0, 0.5])
def test_the_penalty_is_that_of_the_values_in_a_functional_call(net, data, l2):
    """Also where these require no gradient, as those of stacked replicas and of J without its derivative."""
    net.layers.requires_grad_(False)
    objective = Objective.of(Adapted(net, l2=l2), DataLoader(TensorDataset(*data), batch_size=5))
    theta = 2 * objective.losses.theta()
    assert not theta.requires_grad
    expected = 0.5 * l2 * theta.square().sum()
    torch.testing.assert_close(objective.losses.penalty(theta), expected, rtol=1e-14, atol=0)
    together = torch.func.vmap(objective.losses.penalty)(torch.stack([theta, 3 * theta]))
    torch.testing.assert_close(together, torch.stack([expected, 9 * expected]), rtol=1e-14, atol=0)


def test_patterns_and_messages_use_the_names_of_the_module(net):
    adapted = Adapted(net)
    assert ParamSpace.of(adapted, ["head.*"]).names == ("model.head.weight", "model.head.bias")
    with pytest.raises(InputError) as caught:
        ParamSpace.of(adapted, ["heads.*"])
    assert str(caught.value) == (
        "No trainable parameter matches ['heads.*'].\n"
        "  The nearest of the 4 names: ['head.bias', 'head.weight', 'layers.0.bias']."
    )


def test_frozen_parameters_are_left_out_and_tied_ones_counted_once(net):
    net.layers.requires_grad_(False)
    assert ParamSpace.of(Adapted(net)).names == ("model.head.weight", "model.head.bias")
    torch.manual_seed(0)
    tied = Net(hidden=3)
    tied.layers.append(nn.Linear(3, 3))
    tied.layers[2].weight = tied.layers[0].weight
    assert sum("weight" in name for name in ParamSpace.of(Adapted(tied)).names) == 2


def test_checkpoints_and_hyper_parameters_are_those_of_the_module(net):
    adapted = Adapted(net)
    assert list(adapted.state_dict()) == list(net.state_dict())
    assert dict(adapted.hparams) == {"hidden": 4}
    other = Adapted(Net())
    other.load_state_dict(adapted.state_dict())
    assert torch.equal(other.model.head.weight, net.head.weight)


def test_a_module_loads_weights_by_its_own_method():
    class Renaming(Net):
        def load_state_dict(self, state_dict, strict=True):
            return super().load_state_dict({name.removeprefix("old."): v for name, v in state_dict.items()}, strict)

    adapted, weights = Adapted(Renaming()), Net().state_dict()
    adapted.load_state_dict({f"old.{name}": value for name, value in weights.items()})
    assert all(torch.equal(value, weights[name]) for name, value in adapted.state_dict().items())


@pytest.mark.parametrize("written", [torch.float64, torch.float32, torch.float16])
def test_no_digit_of_a_checkpoint_is_lost(written):
    """Whatever the module was made in: a Trainer with precision 64-true leaves no word of it there."""
    state = {name: torch.full_like(value, 1 / 3, dtype=written) for name, value in Net().state_dict().items()}
    module = Adapted(Net())
    module.load_state_dict(state)
    for name, value in module.state_dict().items():
        assert torch.equal(value, state[name].to(value.dtype))
        assert value.dtype == torch.promote_types(written, torch.float32)
    mixed = {name: value.double() if name == "head.weight" else value for name, value in Net().state_dict().items()}
    module.load_state_dict(mixed)
    assert all(torch.equal(value, mixed[name].double()) for name, value in module.double().state_dict().items())


@pytest.mark.parametrize("again", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_have_hooks_of_their_own(net, data, again):
    copied = again(Adapted(net, losses_of))
    assert copied.validation_step.__self__ is copied.model is not net
    assert torch.equal(copied.sample_losses(data), losses_of(net, data))


def test_a_fit_runs_the_hooks_of_the_module(net, data):
    trainer = L.Trainer(max_epochs=1, **TRAINER)
    loader = DataLoader(TensorDataset(*data), batch_size=12)
    trainer.fit(Adapted(net), loader, loader)
    assert set(trainer.callback_metrics) == {"val_loss"}


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_decay_of_an_optimizer_is_the_penalty(data, kind):
    """A fit of the module with weight_decay λ and one of the adapted module with l2 = λ are the same fit."""

    def fitted(wrap: Any) -> Tensor:
        torch.manual_seed(1)
        net = Net(decay=0.3, kind=kind).double()
        L.Trainer(max_epochs=5, **TRAINER).fit(wrap(net), DataLoader(TensorDataset(*data), batch_size=4))
        return ParamSpace.of(net).values_of(net)

    torch.testing.assert_close(fitted(lambda n: Adapted(n, l2=0.3)), fitted(lambda n: n), rtol=1e-10, atol=1e-12)


BESIDE = [functools.partial(getattr(torch.optim, n), decoupled_weight_decay=True) for n in ("Adam", "NAdam", "RAdam")]


@pytest.mark.parametrize(
    ("decay", "kind"), [(0.2, torch.optim.SGD), (0.3, torch.optim.AdamW), *((0.3, kind) for kind in BESIDE)]
)
def test_another_decay_is_refused(net, data, decay, kind):
    net.decay, net.kind = decay, kind
    with pytest.raises(InputError) as caught:
        L.Trainer(max_epochs=1, **TRAINER).fit(Adapted(net, l2=0.3), DataLoader(TensorDataset(*data), batch_size=4))
    assert str(caught.value) == (
        f"The optimizer decays weights (weight_decay = {decay}), which J does not contain: the curvature would be that "
        "of another function than the one trained.\n"
        "  Set weight_decay=0 (torch's AdamW has 0.01 by default) and state the penalty in `penalty`."
    )


def test_a_still_fit_moves_nothing(net, data):
    before = ParamSpace.of(net).values_of(net)
    L.Trainer(max_epochs=1, **TRAINER).fit(
        Adapted(net, skip_training=True), DataLoader(TensorDataset(*data), batch_size=12)
    )
    assert torch.equal(ParamSpace.of(net).values_of(net), before)


def test_weights_are_looked_up_by_position(net, data):
    adapted = Adapted(net, l2=0.1)
    adapted.sample_weights = SampleWeights.removing([3], "zero_weight", 12)
    (batch,) = identified(DataLoader(TensorDataset(*data), batch_size=12))
    assert isinstance(batch, Identified)
    kept = [i for i in range(12) if i != 3]
    expected = losses_of(net, data)[kept].sum() / 12 + adapted.penalty()
    torch.testing.assert_close(adapted.training_step(batch, 0), expected, rtol=1e-14, atol=0)


def test_scores_by_either_way_are_the_same(net, data):
    loader = DataLoader(TensorDataset(*data), batch_size=5)

    def scores(module: Adapted) -> Tensor:
        objective = Objective.of(module, loader)
        theta = objective.losses.theta()
        engine = InfluenceEngine(objective, theta, Damped(Hessian(objective, theta), 1.0), CG(rtol=1e-12))
        return engine.scores(Identified(tuple(x[:2] for x in data), torch.tensor([7, 9]))).value

    torch.testing.assert_close(scores(Adapted(net)), scores(Adapted(net, losses_of)), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("still", [True, False])
def test_the_former_name_of_skip_training_is_taken_with_one_warning(still: bool) -> None:
    with pytest.warns(FormerNameWarning) as caught:
        model = Adapted(Net(), still=still)
    assert model.skip_training is still
    assert [str(w.message) for w in caught] == ["The argument still of Adapted is now skip_training."]
    with pytest.warns(FormerNameWarning, match="The argument still of AdaptedOutputs is now skip_training"):
        outputs = AdaptedOutputs(Net(), LossesOfOutputs(Net.forward, cross_entropy), still=still)
    assert outputs.skip_training is still
    assert model.again(Net()).skip_training is still  # pytest turns another warning into an error


def test_both_names_of_skip_training_at_once_are_refused() -> None:
    with pytest.raises(InputError, match=r"skip_training.*still"):
        Adapted(Net(), skip_training=True, still=False)


def test_a_config_may_have_the_former_name_of_skip_training() -> None:
    parser = ArgumentParser()
    parser.add_subclass_arguments(L.LightningModule, "model")
    inner = {"class_path": f"{__name__}.Net", "init_args": {"hidden": 5}}
    config = {"class_path": "ifloo.models.Adapted", "init_args": {"model": inner, "still": True}}
    with pytest.warns(FormerNameWarning) as caught:
        model = parser.instantiate_classes(parser.parse_object({"model": config})).model
    assert model.skip_training
    assert sum(w.category is FormerNameWarning for w in caught) == 1  # jsonargparse gives warnings of its own


class Noted(Net):
    """Adds its outputs to the batch, which a hook of the fit reads."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        batch["logits"] = self(batch["x"])
        return cross_entropy(batch["logits"], batch["y"])

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.seen.append(batch["logits"].detach())


def test_what_a_step_adds_to_its_batch_is_there_for_the_hooks_of_the_fit() -> None:
    rows = [{"x": torch.ones(3) * i, "y": i % 2} for i in range(8)]
    plain, wrapped, with_ids = Noted(), Noted(), Noted()
    for other in (wrapped, with_ids):
        other.load_state_dict(plain.state_dict())
    loader = DataLoader(rows, batch_size=4)  # type: ignore[arg-type,var-annotated]  # a list of dicts
    for module, data in ((plain, loader), (Adapted(wrapped), loader), (Adapted(with_ids), identified(loader))):
        L.Trainer(max_epochs=2, **TRAINER).fit(module, data)
    assert torch.equal(torch.stack(plain.seen), torch.stack(wrapped.seen))
    assert torch.equal(torch.stack(plain.seen), torch.stack(with_ids.seen))


def test_outside_of_a_fit_a_batch_stays_as_it_is() -> None:
    batch = {"x": torch.ones(2, 3), "y": torch.tensor([0, 1])}
    Adapted(Noted()).training_step(batch, 0)
    assert list(batch) == ["x", "y"]
