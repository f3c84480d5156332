"""Steps that take the dimension of the samples from a batch of one: the error names squeeze(), and no other does."""

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from ifloo.errors import InputError
from ifloo.models import Adapted
from ifloo.objective import Objective

X = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 1, 0, 1, 0])


class Step(L.LightningModule):
    def __init__(self, loss) -> None:
        super().__init__()
        self.lin, self.loss = nn.Linear(3, 2).double(), loss

    def training_step(self, batch, _: int) -> Tensor:
        return self.loss(self.lin(batch[0]), batch[1])


def refused(loss) -> str:
    with pytest.raises(InputError) as caught:
        Objective.of(Adapted(Step(loss)), DataLoader(TensorDataset(X, Y), batch_size=6))
    return str(caught.value)


SQUEEZING = {
    "dimension": lambda z, y: F.nll_loss(F.log_softmax(z.squeeze(), 1), y),
    "size": lambda z, y: F.binary_cross_entropy_with_logits(z[:, 0].squeeze(), y.double()),
    "labels": lambda z, y: F.cross_entropy(z, torch.squeeze(y)),
    "in place": lambda z, y: F.cross_entropy(z, y.clone().squeeze_()),
    "length": lambda z, y: z[:, :1].squeeze().square().sum() / len(z[:, :1].squeeze()),
}


@pytest.mark.parametrize("loss", SQUEEZING.values(), ids=SQUEEZING)
def test_a_squeeze_that_takes_the_samples_is_named_where_the_forward_pass_fails(loss):
    assert refused(loss).endswith(
        "\n  A sample is scored as a batch of one, which training_step must accept: squeeze(-1), for instance, in "
        "place of squeeze(), which takes the dimension of the samples too."
    )


OTHERS = {
    "no squeeze": lambda z, y: F.cross_entropy(z, y["label"]),
    "squeeze of a named dimension": lambda z, y: F.cross_entropy(z.unsqueeze(2).squeeze(2)[:, 5], y),
    "squeeze of no sample": lambda z, y: F.cross_entropy(z[0].squeeze()[None], y["label"]),
}


@pytest.mark.parametrize("loss", OTHERS.values(), ids=OTHERS)
def test_other_failures_of_the_forward_pass_name_no_squeeze(loss):
    text = refused(loss)
    assert "training_step of Step failed on one sample" in text
    assert "A sample is scored as a batch of one" not in text
