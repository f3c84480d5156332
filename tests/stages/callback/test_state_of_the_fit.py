"""The loss that is scored is the one that was trained at that moment: its epoch, its steps, its batch hooks."""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn

from ifloo.attribution import GradientDot
from ifloo.models import Adapted
from ifloo.stages import InfluenceCallback
from tests.stages.callback.fits import fitted, loader, samples
from tests.stages.callback.test_moment import Net, close, gradient_dots, stored, with_checkpoints

QUERIES = samples(2, seed=1)[:]


class Annealed(Net):
    """Its loss has another weight in each epoch."""

    at: int | None = None

    def training_step(self, batch, batch_idx):
        epoch = self.current_epoch if self.at is None else self.at
        z = self.lin(batch[0])
        return nn.functional.cross_entropy(z, batch[1]) + epoch / 5 * z.square().mean()


def at_epoch(module: Any, epoch: int, state: Any = None) -> np.ndarray:
    other = type(module)()
    other.at = epoch
    other.load_state_dict(module.state_dict() if state is None else state)
    return gradient_dots(other, loader())


def test_the_epoch_in_the_loss_is_the_last_that_ran(tmp_path):
    raw = []

    class Raw(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            raw.append({n: x.clone() for n, x in pl_module.state_dict().items()})

    module = Annealed()
    callback = InfluenceCallback(QUERIES, method=GradientDot(), every_n_epochs=1)
    fitted(module, loader(), [Raw(), callback], tmp_path)
    for e in (1, 2, 3):
        assert close(stored(tmp_path, f"epoch_00{e}"), at_epoch(module, e - 1, raw[e - 1]))
    assert not close(stored(tmp_path), at_epoch(module, 0))


def test_the_epoch_in_the_loss_of_the_best_checkpoint_is_its_own(tmp_path):
    module = Annealed()
    best = with_checkpoints(tmp_path, module, InfluenceCallback(QUERIES, method=GradientDot(), weights="best"))
    state = torch.load(Path(best.best_model_path), weights_only=True)["state_dict"]
    assert close(stored(tmp_path, "best"), at_epoch(module, 0, state))
    assert not close(stored(tmp_path, "best"), at_epoch(module, 2, state))


class Scaled(Net):
    """Changes each batch on its way to the device."""

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        x, y = super().transfer_batch_to_device(batch, device, dataloader_idx)
        return x * 3 + 1, y


class Plainly(Net):
    """The same loss as `Scaled`, on the batches of the loader."""

    def training_step(self, batch, batch_idx):
        return super().training_step((batch[0] * 3 + 1, batch[1]), batch_idx)


@pytest.mark.parametrize("adapted", [False, True])
def test_batch_hooks_are_applied_without_a_warning(tmp_path, caplog, adapted):
    module, same = Scaled(), Plainly()
    callback = InfluenceCallback(QUERIES, method=GradientDot())
    fitted(Adapted(module) if adapted else module, loader(), [callback], tmp_path)
    same.load_state_dict(module.state_dict())
    assert close(stored(tmp_path), gradient_dots(same, loader()))
    assert not close(stored(tmp_path), gradient_dots(module, loader()))
    assert not [text for text in caplog.messages if "batches as the training loader makes them" in text]


def test_the_trainer_that_the_loss_reads_is_that_of_the_fit(tmp_path):
    class Reads(Net):
        def training_step(self, batch, batch_idx):
            share = self.trainer.global_step / self.trainer.estimated_stepping_batches
            rate = self.trainer.optimizers[0].param_groups[0]["lr"]
            return super().training_step(batch, batch_idx) * (1 + share) * rate

    module = Reads()
    trainer = fitted(module, loader(), [InfluenceCallback(QUERIES, method=GradientDot())], tmp_path)
    assert trainer.global_step == trainer.estimated_stepping_batches
    plain = Net()
    plain.load_state_dict(module.state_dict())
    assert close(
        stored(tmp_path), 4 * gradient_dots(plain, loader())
    )  # both gradients are twice those of the plain loss
    assert module.trainer is trainer
