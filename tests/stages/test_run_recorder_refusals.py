"""What no recorded step contains is refused before the first one."""

import functools

import pytest
import torch
from torch import nn, optim
from torch.utils.data import DataLoader, IterableDataset

from ifloo.attribution import TrainedModel as Attributed
from ifloo.attribution import Unrolled
from ifloo.errors import InputError
from ifloo.objective import Objective
from ifloo.objective.loaders import identified, sequential
from ifloo.params import ParamSpace
from ifloo.refit import NewtonFinish, TrainerSettings
from ifloo.stages import RunRecorder
from ifloo.stages.run_recorder import module_faults
from ifloo.store import RunFolder
from tests.refit.trained import Trained, dataset, perceptron


@pytest.fixture
def folder(tmp_path):
    return RunFolder.of(tmp_path / "base.pth")


def refusal(*faults):
    return (
        "This fit is to be recorded for attribution, and the recorded step, one optimizer step on (1/b) Σ w_i ℓ_i + R, "
        "would not contain:\n" + "".join(f"  - {fault}\n" for fault in faults) + "  Change these settings, or choose "
        "methods that need no recorded run."
    )


def refused(folder, module, loader=None, **recipe):
    """What a fit with a recorder says; it has left nothing and moved no weight."""
    before = ParamSpace.of(module).values_of(module)
    trainer = TrainerSettings(**{"max_epochs": 1, "accelerator": "cpu"} | recipe).trainer(RunRecorder(folder))
    with pytest.raises(InputError) as caught:
        trainer.fit(module, DataLoader(dataset(ids=True), batch_size=7) if loader is None else loader)
    assert not folder.path.exists()
    assert torch.equal(ParamSpace.of(module).values_of(module), before)
    return str(caught.value)


RECIPES = {
    "clipping": (
        {"gradient_clip_val": 0.5},
        "gradient clipping (gradient_clip_val = 0.5): leave it out, and lower the learning rate if the fit diverges",
    ),
    "accumulation": ({"accumulate_grad_batches": 2}, "accumulation over 2 batches: raise the batch size instead"),
    "precision": ({"precision": "bf16-mixed"}, "precision bf16-mixed: use 32-true or 64-true"),
}


@pytest.mark.parametrize(("recipe", "fault"), RECIPES.values(), ids=RECIPES)
def test_recipes_that_no_step_contains(folder, recipe, fault):
    assert refused(folder, Trained(perceptron()), **recipe) == refusal(fault)


def attention_layer(between, within):
    """A transformer layer with two dropouts: around its attention, and inside it."""
    layer = nn.TransformerEncoderLayer(5, 1, 8, dropout=between, batch_first=True)
    layer.self_attn.dropout = within
    return layer


MODULES = {
    **{
        type(layer).__name__: (layer, "dropout in network.1: set it to 0")
        for layer in (
            nn.Dropout(0.3),
            nn.Dropout1d(0.3),
            nn.Dropout2d(0.3),
            nn.Dropout3d(0.3),
            nn.AlphaDropout(0.3),
            nn.FeatureAlphaDropout(0.3),
            nn.MultiheadAttention(5, 1, dropout=0.3),
            nn.LSTM(5, 5, num_layers=2, dropout=0.2),
            nn.GRU(5, 5, num_layers=2, dropout=0.2),
            nn.RNN(5, 5, num_layers=2, dropout=0.2),
        )
    },
    "attention alone": (attention_layer(0.0, 0.3), "dropout in network.1.self_attn: set it to 0"),
    "rrelu": (nn.RReLU(), "slopes of RReLU in network.1: use LeakyReLU"),
    "random pooling": (
        nn.FractionalMaxPool2d(2, output_size=1),
        "regions of FractionalMaxPool2d in network.1: use AdaptiveMaxPool",
    ),
    "batch statistics": (nn.BatchNorm1d(5).double(), "batch statistics in network.1: use LayerNorm or GroupNorm"),
}


@pytest.mark.parametrize(("layer", "fault"), MODULES.values(), ids=MODULES)
def test_layers_that_no_step_contains(folder, layer, fault):
    assert refused(folder, Trained(perceptron(layer))) == refusal(fault)


NOT_RANDOM = {
    "p = 0": nn.Dropout(0.0),
    "evaluation mode": nn.Dropout(0.3).eval(),
    "frozen statistics": nn.BatchNorm1d(5).eval(),
}


@pytest.mark.filterwarnings("ignore:Found 1 module.* in eval mode")  # Lightning's, which asks whether it is meant
@pytest.mark.parametrize("layer", NOT_RANDOM.values(), ids=NOT_RANDOM)
def test_layers_that_draw_nothing_are_recorded_and_replayed(folder, layer):
    module = Trained(perceptron(layer))
    loader = DataLoader(dataset(ids=True), batch_size=7)
    TrainerSettings(max_epochs=2, accelerator="cpu").trainer(RunRecorder(folder, ids="third")).fit(module, loader)
    theta = ParamSpace.of(module).values_of(module)
    objective = Objective.of(module.eval(), sequential(loader, 7, ids="third"))
    scores = Unrolled().scores(Attributed(objective, theta, folder.read(theta)), dataset(ids=True)[:2])
    assert float(scores.certificate.residual.max()) <= 1e-9  # the replay ends where the fit did


def test_a_recurrent_layer_of_one_level_drops_nothing():
    with pytest.warns(UserWarning, match="dropout option adds dropout after all but last"):
        layer = nn.LSTM(5, 5, dropout=0.2)
    assert module_faults(Trained(perceptron(layer))) == []


def two_groups(parameters):
    first, *others = parameters
    return optim.SGD([{"params": [first], "lr": 0.3}, {"params": others}], lr=0.1)


OPTIMIZERS = {
    "lbfgs": (optim.LBFGS, "optimizer LBFGS: use SGD, Adam or AdamW"),
    "another": (optim.RMSprop, "optimizer RMSprop: use SGD, Adam or AdamW"),
    "groups": (two_groups, "parameter groups of different settings: use one group"),
    "amsgrad": (functools.partial(optim.Adam, amsgrad=True), "amsgrad: leave it out"),
    "maximize": (functools.partial(optim.SGD, lr=0.1, maximize=True), "maximize: minimise the negative"),
    "sgd's decay": (
        functools.partial(optim.SGD, lr=0.1, weight_decay=0.01),
        "weight decay inside the gradient (0.01): state it in the module's penalty",
    ),
    "adam's decay": (
        functools.partial(optim.Adam, weight_decay=0.02),
        "weight decay inside the gradient (0.02): state it in the module's penalty",
    ),
}


@pytest.mark.parametrize(("optimizer", "fault"), OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_optimizers_whose_rule_is_not_known(folder, optimizer, fault):
    assert refused(folder, Trained(perceptron(), optimizer)) == refusal(fault)


class ByHand(Trained):
    def __init__(self):
        super().__init__(perceptron())
        self.automatic_optimization = False

    def configure_optimizers(self):
        return [optim.SGD(part.parameters(), lr=0.1) for part in (self.network[0], self.network[2])]


def test_every_fault_is_said_at_once(folder):
    assert refused(folder, ByHand()) == refusal(
        "2 optimizers: use one",
        "optimization by hand (automatic_optimization = False): let the Trainer step",
    )


class Stream(IterableDataset):
    def __iter__(self):
        return iter(list(dataset(ids=True)))


def test_samples_that_cannot_be_found_again(folder):
    assert refused(folder, Trained(perceptron()), DataLoader(Stream(), batch_size=7)) == refusal(
        "a Stream, whose samples cannot be found again: give a map-style dataset"
    )


def test_batches_that_do_not_say_which_samples_they_hold(folder):
    loader = DataLoader(dataset(), batch_size=7)
    assert refused(folder, Trained(perceptron()), loader) == refusal(
        "a batch, a list, without sample ids: give each sample its id (key `idx` or `sample_index`, or the third item "
        "of (x, y, idx) and ids='third')"
    )
    TrainerSettings(max_epochs=1, accelerator="cpu").trainer(RunRecorder(folder)).fit(
        Trained(perceptron()), identified(loader)
    )
    assert folder.path.is_dir()


def test_decoupled_decay_without_a_recording():
    trainer = TrainerSettings(max_epochs=1, accelerator="cpu").trainer(NewtonFinish("never"))
    with pytest.raises(InputError) as caught:
        trainer.fit(
            Trained(perceptron(), functools.partial(optim.AdamW, weight_decay=0.1)),
            DataLoader(dataset(ids=True), batch_size=7),
        )
    assert str(caught.value) == (
        "The optimizer decays weights (weight_decay = 0.1), which J does not contain: the curvature would be that of "
        "another function than the one trained.\n"
        "  Set weight_decay=0 (torch's AdamW has 0.01 by default) and state the penalty in `penalty`."
    )
