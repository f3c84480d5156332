"""What replicas trained together cannot do is refused, with the reason."""

import re
from dataclasses import replace

import pytest
import torch
from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset

from ifloo.errors import InputError
from ifloo.refit import NewtonFinish
from ifloo.refit.strategies import StackedReplicas, StrategyError
from ifloo.refit.strategies.base import OneByOne, RefitTask
from tests.problems import AttentionModel
from tests.refit.trained import SGD, Trained, dataset, perceptron, refitter


class ByHand(Trained):
    def __init__(self, network):
        super().__init__(network)
        self.automatic_optimization = False


class Hooked(Trained):
    def on_after_backward(self):
        pass

    def on_train_batch_end(self, *_):
        pass


class TwoOptimizers(Trained):
    def configure_optimizers(self):
        return [SGD(self.network[0].parameters()), optim.Adam(self.network[2].parameters())]


class Looking(nn.Module):
    """A table with sparse gradients."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(2, 3, sparse=True, dtype=torch.float64)

    def forward(self, x):
        return self.table((x[:, 0] > 0).long())


class Unpenalised(Trained):
    def penalty(self):
        return torch.zeros(())


class Branching(Trained):
    def sample_losses(self, batch):
        return super().sample_losses(batch) * (2 if self.network[2].bias.sum() > 0 else 1)


class Straying(Trained):
    """Its loss depends on how often it was called."""

    calls = 0

    def sample_losses(self, batch):
        self.calls += 1
        return super().sample_losses(batch) * self.calls


class Plateau(Trained):
    def configure_optimizers(self):
        optimizer = SGD(self.parameters())
        schedule = optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": "loss"}}


REFUSALS = {
    "not elementwise": (
        lambda: Trained(perceptron(), optim.LBFGS),
        {},
        "optimizer LBFGS does not step each weight by its own gradients alone",
    ),
    "clipping by norm": (
        lambda: Trained(perceptron()),
        {"gradient_clip_val": 0.5},
        "gradient_clip_val = 0.5 clips by the norm over all replicas (gradient_clip_algorithm value would not)",
    ),
    "Newton steps": (
        lambda: Trained(perceptron()),
        {"after": "always"},
        "finish.after = always asks for Newton steps at the end of each refit",
    ),
    "mixed precision": (
        lambda: Trained(perceptron()),
        {"precision": "bf16-mixed"},
        "precision bf16-mixed is too coarse to compare replicas with one model (use 32-true or 64-true)",
    ),
    "by hand": (lambda: ByHand(perceptron()), {}, "ByHand optimizes by hand (automatic_optimization = False)"),
    "hooks": (
        lambda: Hooked(perceptron()),
        {},
        "Hooked overrides on_train_batch_end, on_after_backward, written for one set of weights",
    ),
    "another contract": (
        lambda: AttentionModel(0.1),
        {},
        "AttentionModel is no SampleLossModule, so its training loss is not known to be J",
    ),
    "plateau": (
        lambda: Plateau(perceptron()),
        {},
        "ReduceLROnPlateau follows a metric, and each replica has its own",
    ),
    "sparse gradients": (
        lambda: Unpenalised(Looking()),
        {},
        "a parameter has sparse gradients, by which optimizers step some entries only",
    ),
    "buffers": (
        lambda: Trained(perceptron(nn.BatchNorm1d(5))),
        {},
        "training changes buffers (network.1.running_mean, network.1.running_var, network.1.num_batches_tracked), "
        "which replicas share",
    ),
    "branches": (
        lambda: Branching(perceptron()),
        {},
        "torch.func.vmap cannot run its loss over replicas: vmap: It looks like you're attempting to use a Tensor in "
        "some data-dependent control flow",
    ),
}


@pytest.mark.parametrize(("model", "how", "reason"), REFUSALS.values(), ids=REFUSALS)
def test_what_replicas_cannot_do_is_refused(model, how, reason):
    with pytest.raises(StrategyError) as caught:
        StackedReplicas(refitter(model, **how))
    assert str(caught.value) == reason


def test_a_gradient_that_differs_is_refused():
    with pytest.raises(StrategyError) as caught:
        StackedReplicas(refitter(lambda: Straying(perceptron())))
    assert re.fullmatch(
        r"on its first batch the gradient of a replica is \d\.\de[-+]\d\d away from that of the model alone \(of norm "
        r"\d\.\de[-+]\d\d\)",
        str(caught.value),
    )


def test_an_end_of_its_own_is_refused():
    how = refitter(lambda: Trained(perceptron()))
    finish = type("Measuring", (NewtonFinish,), {"end_fit": lambda *_: None})(how.finish.after)
    with pytest.raises(StrategyError, match=r"^Measuring overrides end_fit, written for one set of weights$"):
        StackedReplicas(replace(how, finish=finish))


WRONG_ANYWAY = {
    "weight decay outside J": (lambda: Trained(perceptron(), optim.AdamW), "The optimizer decays weights"),
    "two optimizers": (lambda: TwoOptimizers(perceptron()), "Training with multiple optimizers is only supported"),
}


@pytest.mark.parametrize(("model", "begin"), WRONG_ANYWAY.values(), ids=WRONG_ANYWAY)
def test_what_a_fit_of_one_refuses_is_refused_in_its_words(model, begin):
    how, messages = refitter(model), []
    for fit in (lambda: StackedReplicas(how), lambda: OneByOne(how).fit([RefitTask()])):
        with pytest.raises((InputError, RuntimeError)) as caught:
            fit()
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert messages[0].startswith(begin)


class WholeBatches(TensorDataset):
    """Batches made by the dataset, without ids: nothing to look weights up by."""

    def __getitem__(self, i):
        return tuple(x[7 * i : 7 * i + 7] for x in self.tensors)

    def __len__(self):
        return 4


def test_batches_without_ids_are_refused():
    data = WholeBatches(*dataset().tensors)
    how = replace(refitter(lambda: Trained(perceptron())), loader=lambda: DataLoader(data, batch_size=None))
    with pytest.raises(StrategyError) as caught:
        StackedReplicas(how)
    assert str(caught.value) == "its batches carry no sample ids to look weights up by"
