"""A difference that evaluation mode does not explain is refused with its cause and the flag that mends it."""

import pytest
import torch
from torch.nn import functional as F

from ifloo.errors import InputError
from ifloo.models.run_state import RunState
from ifloo.objective.certificate import Outcome
from ifloo.stages.certificate.examined_run import objective_certificate
from tests.stages.certificate.modules import (
    L2,
    Contrastive,
    HeadOnly,
    HookedAtTheStart,
    HookedWhenBuilt,
    Masked,
    MaskedBeforeStep,
    Moment,
    Net,
    SharpnessAware,
    Summed,
    losses,
)
from tests.stages.certificate.requested import certificate, of


@pytest.mark.parametrize(
    ("net", "cause", "remedy"),
    [
        (Masked, "gradient masks (on_after_backward)", "freeze the weights"),
        (MaskedBeforeStep, "gradient masks (on_before_optimizer_step)", "attribute the others: `parameters`."),
        (SharpnessAware, "gradient masks (optimizer_step)", "freeze the weights"),
        (HookedWhenBuilt, "gradient masks (hooks on weights)", "freeze the weights"),
        (HookedAtTheStart, "gradient masks (hooks on weights)", "freeze the weights"),
        (Summed, "a sum over the batch in place of the mean", "divide the loss by the number of samples"),
        (
            Contrastive,
            "the most likely cause: a loss taken across the batch (contrastive, by ranks or pairs), or several terms "
            "with different weights or denominators",
            "state the loss of one sample: `sample_losses`;",
        ),
    ],
)
def test_unexplained_differences_are_refused_with_their_cause(net, cause, remedy):
    with pytest.raises(InputError) as caught:
        objective_certificate(of(net))
    assert f"{cause}: " in str(caught.value)
    assert remedy in str(caught.value)
    assert "Ruled out: a branch on self.training or trainer.training" in str(caught.value)
    accepted = objective_certificate(of(net, accept=True)).certificate
    assert accepted.outcome is Outcome.UNEXPLAINED
    assert "accepted by `accept_objective`" in accepted.text


def test_a_loss_scored_at_another_epoch_is_refused():
    request = of(Moment)
    request.module.describe_fit(RunState(), request.datamodule, request.loader)
    with pytest.raises(
        InputError, match=r"epoch 7 or step 20 in the loss: .*name the checkpoint of the end of the fit"
    ):
        objective_certificate(request)


def test_state_that_only_hooks_of_a_fit_set_is_named():
    class Scaled(Net):
        def __init__(self):
            super().__init__()
            self.scale = 1.0

        def on_fit_start(self):
            self.scale = 3.0

        def training_step(self, batch, _):
            return F.cross_entropy(self.lin(self.scale * batch[0]), batch[1])

    class Unsaved(Scaled):
        def __init__(self):
            super().__init__()
            del self.scale
            self.register_buffer("scale", torch.ones(4, dtype=torch.float64), persistent=False)

        def on_fit_start(self):
            self.scale = 3 * torch.ones(4, dtype=torch.float64)

    for net in (Scaled, Unsaved):
        with pytest.raises(InputError, match="what on_fit_start sets: the checkpoint holds none of it"):
            objective_certificate(of(net))


def test_a_penalty_of_the_training_step_is_measured():
    with pytest.raises(InputError, match=r"a penalty in training_step that J lacks: give l2=0.02\."):
        objective_certificate(of(Net, sample_losses=losses))
    with pytest.raises(InputError, match=r"give l2=0.02\."):
        objective_certificate(of(Net, sample_losses=losses, l2=0.005))


def test_a_penalty_that_is_only_stated_is_noted():
    """It is the user's own word, and acts as damping does."""

    class Bare(Net):
        def l2(self):
            return 0.0

    found = certificate(Bare, l2=0.1)
    assert found.outcome is Outcome.EQUAL
    assert found.note == "J has the stated penalty, which a training step lacks: it acts as damping does"
    assert certificate(Bare).note == ""


def test_a_loss_of_the_wrong_shape_is_refused_as_such():
    def reduced(model, batch):
        return F.cross_entropy(model.lin(batch[0]), batch[1])

    with pytest.raises(InputError, match="sample_losses must return one loss a sample"):
        objective_certificate(of(Net, sample_losses=reduced))


def test_another_loss_function_is_refused():
    def squared(model, batch):
        return (model.lin(batch[0]) - F.one_hot(batch[1], 3)).square().sum(1)

    with pytest.raises(InputError, match="another loss of a sample than that of training_step on a batch of one"):
        objective_certificate(of(Net, sample_losses=squared, l2=L2))


def test_weights_that_no_optimizer_has_are_refused_with_the_flag():
    with pytest.raises(InputError) as caught:
        objective_certificate(of(HeadOnly))
    text = str(caught.value)
    assert text.startswith("J is not what was trained: parameters that no optimizer has (body.weight, body.bias).")
    assert "configure_optimizers trains lin.* alone: give parameters=['lin.*']." in text
