"""Modules that are completed by their hooks, and those of the other Lightning package."""

import copy
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ifloo.models import Adapted
from ifloo.models.hooks import overridden
from ifloo.models.run_state import RunState, stand_in_trainer
from ifloo.models.set_up import set_up
from ifloo.objective.layers import BATCH_HOOKS

X = TensorDataset(torch.ones(4, 3))


class Later(L.LightningModule):
    """Makes a layer in each of its hooks, another one in each call."""

    def setup(self, stage: str) -> None:
        self.first = nn.Linear(3, self.trainer.max_epochs or 1)

    def configure_model(self) -> None:
        self.second = nn.Linear(self.first.out_features, 1).requires_grad_(False)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.second(self.first(batch[0])).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def fit(module: L.LightningModule) -> None:
    trainer = L.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(X, batch_size=4))


def test_layers_are_made_once_and_their_weights_stay_through_a_fit():
    module = Adapted(Later(), l2=1.0)
    set_up(module, stand_in_trainer(RunState(max_epochs=5)))
    assert module.model.first.out_features == 5
    weights = copy.deepcopy(module.state_dict())
    expected = 0.5 * sum(p.square().sum().item() for p in module.model.first.parameters())
    assert module.penalty().item() == pytest.approx(expected)  # of what is trained
    copied = copy.deepcopy(module)
    fit(copied)
    assert all(torch.equal(value, weights[name]) for name, value in copied.state_dict().items())


def test_a_trainer_completes_a_module_that_is_not_set_up():
    module = Adapted(Later(), l2=1.0)
    fit(module)
    assert module.model.first.out_features == 2
    assert module.penalty().item() > 0


def test_a_module_of_the_other_package_is_adapted_as_its_own():
    pl = pytest.importorskip("pytorch_lightning")

    class Net(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(3, 1)
            self.seen: list[int] = []

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.lin(batch[0]).square().mean()

        def on_train_epoch_start(self) -> None:
            self.seen.append(self.current_epoch)

        def configure_optimizers(self) -> Any:
            steps = int(self.trainer.estimated_stepping_batches)
            return torch.optim.SGD(self.parameters(), lr=0.1 / steps)

    net = Net()
    assert overridden(net, BATCH_HOOKS, L.LightningModule) == []
    assert overridden(net, ["on_train_epoch_start"], L.LightningModule) == ["on_train_epoch_start"]
    module = Adapted(net)
    assert "on_after_batch_transfer" not in vars(module)
    before = net.lin.weight.clone()
    fit(module)
    assert net.seen == [0, 1]
    assert not torch.equal(net.lin.weight, before)
