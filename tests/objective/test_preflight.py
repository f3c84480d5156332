"""What breaks the premise of per-sample influence is found at the door, and said."""

import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ifloo.errors import InputError
from ifloo.objective import FunctionalLosses, Objective, preflight
from ifloo.params import ParamSpace
from tests.problems import Attention, Logistic, Ridge


class Model(nn.Module):
    """Two inputs to one output; `how` says what goes wrong on the way."""

    def __init__(self, how):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(5, dtype=torch.float64))
        self.how = how

    def sample_losses(self, batch):
        return self.how(batch["x"] * self.weight)

    def penalty(self):
        return 0.5 * self.weight.square().sum()


def _refusal(how):
    module = Model(how)
    objective = Objective(FunctionalLosses(module, ParamSpace.of(module)), Ridge.make().data(batch_size=40))
    with pytest.raises(InputError) as caught:
        preflight(objective, torch.ones(5, dtype=torch.float64))
    return str(caught.value)


def test_dropout_left_on():
    torch.manual_seed(0)
    assert re.fullmatch(
        r"The loss of a sample differs at two calls on the same batch: \S+ and \S+ \(row \d+\)\.\n"
        r"  Its cause is most often a random layer \(dropout\) that is on while scoring\. Per-sample influence needs "
        r"a loss "
        r"that belongs to the sample alone\.",
        _refusal(lambda h: F.dropout(h, 0.5, training=True).square().sum(1)),
    )


@pytest.mark.parametrize(
    "how",
    [
        lambda h: (h - h.mean(0)).square().sum(1),  # normalised over the batch
        lambda h: F.cross_entropy(h @ h.T, torch.arange(len(h)), reduction="none"),  # other samples as negatives
    ],
    ids=["batch statistics", "in-batch loss"],
)
def test_a_loss_across_the_batch(how):
    assert re.fullmatch(
        r"The loss of a sample differs alone and in a batch: \S+ and \S+ \(row \d+\)\.\n"
        r"  Its cause is most often BatchNorm in train mode, or a loss taken across the batch\. Per-sample influence "
        r"needs a loss that belongs to the sample alone\.",
        _refusal(how),
    )


@pytest.mark.parametrize("statistics", [True, False])
def test_batch_norm_in_train_mode(statistics):
    kept = [torch.zeros(5, dtype=torch.float64), torch.ones(5, dtype=torch.float64)] if statistics else [None, None]
    message = _refusal(lambda h: F.batch_norm(h, *kept, training=True).square().sum(1))
    assert "BatchNorm in train mode" in message
    assert message.endswith("Per-sample influence needs a loss that belongs to the sample alone.")


def test_batch_norm_that_follows_the_mode_is_fine():
    """`scoring` puts it in evaluation mode."""
    norm = nn.BatchNorm1d(5, dtype=torch.float64).train()
    module = Model(lambda h: norm(h).square().sum(1))
    module.norm = norm
    space = ParamSpace.of(module)
    preflight(Objective(FunctionalLosses(module, space), Ridge.make().data()), space.values_of(module))
    assert norm.training
    assert torch.equal(norm.running_mean, torch.zeros(5, dtype=torch.float64))


def test_a_forward_pass_that_depends_on_values():
    message = _refusal(lambda h: h.square().sum(1) if h.sum().item() > -1e9 else h.sum(1))
    assert message.startswith("The loss of one sample cannot be computed alone (torch.func.vmap over batches of one): ")
    assert ".item()" in message


def test_a_reduced_loss():
    assert _refusal(lambda h: h.square().mean()) == (
        "sample_losses must return one loss a sample, shape [16] for a batch of 16; got [].\n"
        "  Leave out the reduction (reduction='none') and sum over everything but the first dimension."
    )


def test_a_loss_that_is_not_finite():
    message = _refusal(lambda h: torch.where(torch.arange(len(h)) == 3, float("nan"), h.sum(1)))
    drawn = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    assert message == (
        f"The loss of training sample {drawn[3]} is nan: no score can be computed.\n"
        "  Its targets may all be ignored (ignore_index, padding), so that their mean is 0/0, or the sample or the "
        "weights are not finite. Leave the sample out, or divide by max(count, 1)."
    )


@pytest.mark.parametrize("problem", [Ridge.make(), Logistic.make()], ids=lambda p: type(p).__name__)
def test_a_minimum_passes_without_a_word(problem):
    found = preflight(problem.objective(), problem.theta)
    assert found.grad_norm < 1e-13
    assert found.warning is None


def test_away_from_a_minimum_it_says_how_far():
    problem = Logistic.make()
    found = preflight(problem.objective(), problem.theta + 0.5)
    exact = torch.autograd.functional.jacobian(problem.value, problem.theta + 0.5).norm()
    assert found.grad_norm == pytest.approx(float(exact), rel=1e-12)
    drawn = torch.randperm(50, generator=torch.Generator().manual_seed(0))[:16]
    gradients = problem.gradients(problem.theta + 0.5, problem.x[drawn], problem.labels[drawn])
    assert found.sample_share == pytest.approx(float(gradients.norm(dim=1).mean()) / 50, rel=1e-12)
    assert found.warning == (
        f"the checkpoint is not at a minimum: |grad J| = {found.grad_norm:.2e}, while one sample contributes about "
        f"{found.sample_share:.2e}. Influence is the derivative of the minimiser; away from it the scores predict no "
        "refit. Train longer (`ifloo fit` by LBFGS ends at 1e-10), or take the scores as a ranking at best."
    )


def test_attention_passes():
    preflight(Attention.make().objective(), Attention.make().theta)
