"""The doctor on a module that is no SampleLossModule: what its training step has to do with J."""

import torch
from torch.nn import functional as F

from ifloo.doctor.examine import examine
from ifloo.doctor.finding import Finding, Severity
from ifloo.models import Adapted
from tests.doctor.patients import Plain, X, Y, losses, subject

STEP_NOTE = Finding(
    "losses of samples taken from training_step, on batches of one",
    "Plain.training_step",
    "A penalty that it adds counts as part of each ℓ_i and of the test loss L_t; the minimum is the same, predicted "
    "and actual changes contain it.",
    "None needed where it adds no penalty; else give the losses (--adapt.sample_losses) and the penalty "
    "(--adapt.penalty or --adapt.l2) apart.",
    Severity.NOTE,
)


def found(module):
    return list(examine(subject(module)).findings)


def test_losses_of_a_training_step():
    assert found(Plain()) == [STEP_NOTE]


def test_a_training_step_across_the_batch():
    weights = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)

    def weighted(logits, labels):
        return F.cross_entropy(logits, labels, weight=weights) - F.cross_entropy(logits, labels)

    (one,) = found(Plain(more=weighted))
    assert one.what.startswith("training_step on a batch of 16 gives ")
    assert one.fatal


def test_losses_that_are_not_what_was_trained():
    """The penalty in the training step is stated: no finding; it is not: one."""

    def squared(model):
        return 0.1 * model.layer.weight.square().sum()

    module = Plain()
    module.more = lambda logits, labels: squared(module)
    assert found(Adapted(module, losses, squared)) == []
    torch.manual_seed(0)
    module = Plain()
    module.more = lambda logits, labels: squared(module)
    with torch.no_grad():
        mean = float(losses(module, (X[:16], Y[:16])).mean())
        penalty = float(squared(module))
    assert found(Adapted(module, losses)) == [
        Finding(
            f"training_step gives {mean + penalty:.6g} on 16 samples, mean of sample_losses plus penalty {mean:.6g}",
            "Plain.training_step",
            "Where its own Trainer trained it, the scores are of another function than the one trained; a fit by ifloo "
            "trains the second.",
            "State in --adapt.sample_losses and --adapt.penalty what training_step adds up, or fit again with ifloo.",
            Severity.WARNING,
        )
    ]


def test_logging_in_a_training_step_and_its_trainer():
    class Telling(Plain):
        def training_step(self, batch, index):
            loss = super().training_step(batch, index)
            self.log("train_loss", loss * self.trainer.max_epochs)
            return loss

    logged, note = found(Telling())
    assert (logged.what, logged.where) == ("self.log within the loss of a sample", "train_loss")
    assert note.where == "Telling.training_step"
