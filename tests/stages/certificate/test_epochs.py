"""The batches of a fit in the certificate: whose they are where a Trainer is known, and what is said where none is."""

import lightning as L
import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset

from ifloo.errors import InputError
from ifloo.models import SampleLossModule
from ifloo.objective.certificate import Outcome
from ifloo.stages import InfluencePredictor
from tests.objective.expected_shares import of_shuffles
from tests.stages.certificate.modules import BATCH, CLASS_WEIGHTS, ClassWeights, Data, N, Net
from tests.stages.certificate.requested import certificate

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
QUERY = (torch.zeros(1, 4, dtype=torch.float64), torch.tensor([0]))


def trained(module, loader, **settings):
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", **QUIET, **settings)
    trainer.fit(module, loader)
    return module


def examined(module, loader):
    return InfluencePredictor(module, loader, queries=QUERY).examined()


class Losses(SampleLossModule):
    """The linear classifier with its losses stated."""

    def __init__(self):
        super().__init__()
        self.lin = torch.nn.Linear(4, 3, dtype=torch.float64)

    def sample_losses(self, batch):
        return F.cross_entropy(self.lin(batch[0]), batch[1], reduction="none")

    def penalty(self):
        return torch.zeros((), dtype=torch.float64)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_the_batches_are_those_of_the_trainer_whatever_the_loader_of_the_scores():
    shuffled = DataLoader(Data.dataset, batch_size=BATCH, shuffle=True)
    in_order = DataLoader(Data.dataset, batch_size=64)
    found = examined(trained(ClassWeights(), shuffled), in_order)
    a = CLASS_WEIGHTS[Data.dataset.tensors[1]]
    torch.testing.assert_close(found.weights.shares, of_shuffles(a, BATCH), rtol=1e-10, atol=0)
    assert "J has these weights in expectation over shuffled batches of 30, n c_i from " in found.certificate.text

    found = examined(trained(Net(), in_order), shuffled)
    torch.testing.assert_close(found.weights.shares[[0, 89]], torch.tensor([1 / 128, 1 / 52], dtype=torch.float64))
    assert found.certificate.outcome is Outcome.WEIGHTED
    assert found.certificate.text.startswith(
        "a training step is the mean over its batch, and J is the mean over the same 2 batches of 64 in each epoch, "
        "the smallest of 26, n c_i from 0.703 to 1.73 (relative difference "
    )
    assert found.certificate.record()["shares"]["batches"].startswith("over the same 2 batches of 64 in each epoch")


def test_a_loader_in_order_without_a_known_fit_stands_for_a_shuffled_one_and_says_what_order_would_make_of_j():
    found = examined(Net(), DataLoader(Data.dataset, batch_size=64))
    assert found.weights is None
    assert found.certificate.outcome is Outcome.EQUAL
    assert found.certificate.note == (
        "a fit on this loader, which goes through the data in order, would have J as the mean over the same 2 batches "
        "of 64 in each epoch, the smallest of 26, n c_i from 0.703 to 1.73"
    )
    assert examined(Net(), DataLoader(Data.dataset, batch_size=BATCH)).certificate.note == ""
    found = examined(ClassWeights(), DataLoader(Data.dataset, batch_size=BATCH))
    a = CLASS_WEIGHTS[Data.dataset.tensors[1]]
    torch.testing.assert_close(found.weights.shares, of_shuffles(a, BATCH), rtol=1e-10, atol=0)


def test_a_dataset_that_is_made_again_for_each_loader_is_that_of_the_fit():
    again = TensorDataset(*Data.dataset.tensors)
    found = examined(trained(Net(), DataLoader(again, batch_size=64)), DataLoader(Data.dataset, batch_size=90))
    assert found.weights.shares[[0, 89]].tolist() == pytest.approx([1 / 128, 1 / 52])
    other = TensorDataset(*(x[:60] for x in again.tensors))
    found = examined(trained(Net(), DataLoader(other, batch_size=64)), DataLoader(Data.dataset, batch_size=90))
    assert found.weights is None


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"limit_train_batches": 0.5}, "limit_train_batches = 0.5"), ({"overfit_batches": 2}, "overfit_batches = 2")],
)
@pytest.mark.filterwarnings("ignore:You requested to overfit")
def test_a_trainer_of_part_of_the_data_is_refused_by_the_python_api_too(settings, named):
    loader = DataLoader(Data.dataset, batch_size=BATCH)
    module = trained(Net(), loader, **settings)
    with pytest.raises(InputError, match=named):
        examined(module, loader)


def test_stated_losses_have_their_own_j_and_say_what_an_epoch_weighs():
    found = examined(Losses(), DataLoader(Data.dataset, batch_size=64))
    assert found.weights is None
    assert found.certificate.note == (
        "J counts each sample once, while an epoch of the training loader is the mean over the same 2 batches of 64 in "
        "each epoch, the smallest of 26, n c_i from 0.703 to 1.73"
    )
    assert examined(Losses(), DataLoader(Data.dataset, batch_size=64, shuffle=True)).certificate.note == ""
    with pytest.raises(InputError, match=r"torch\.utils\.data\.Subset"):
        examined(Losses(), DataLoader(Data.dataset, batch_size=30, sampler=SubsetRandomSampler(range(40))))


def test_rows_of_a_sampler_are_the_data_of_a_plain_module():
    loader = DataLoader(Data.dataset, batch_size=30, sampler=SubsetRandomSampler(range(40)))
    found = examined(trained(Net(), loader), loader)
    assert found.weights.shares.tolist() == [1 / 40] * 40 + [0.0] * (N - 40)
    assert "50 of 90 samples have c_i = 0 and the score 0" in found.certificate.text


class Summed(Net):
    def training_step(self, batch, _):
        return F.cross_entropy(self.lin(batch[0]), batch[1], reduction="sum") / BATCH


@pytest.mark.parametrize("size", [BATCH, 32])
def test_a_sum_divided_by_a_constant_is_named_as_a_sum_whatever_the_batches(size):
    class Batches(Data):
        def train_dataloader(self):
            return DataLoader(self.dataset, batch_size=size, shuffle=True)

    found = certificate(Summed, Batches())
    assert found.outcome is Outcome.UNEXPLAINED
    assert found.causes[0].name == "a sum over the batch in place of the mean"
