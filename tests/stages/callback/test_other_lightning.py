"""Modules and Trainers of `pytorch_lightning`, whose classes are others than those of `lightning`."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from ifloo.attribution import GradientDot
from ifloo.data.fit_record import FitRecord
from ifloo.stages import InfluenceCallback
from ifloo.store import Manifest, sha256_of_tensors
from tests.stages.callback.fits import FEATURES, samples
from tests.stages.callback.test_moment import close, gradient_dots, loader, stored

pl = pytest.importorskip("pytorch_lightning")


class Net(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lin = nn.Linear(FEATURES, 3, dtype=torch.float64)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.lin(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("score", float(self.current_epoch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


class Data(pl.LightningDataModule):
    def train_dataloader(self):
        return loader()

    def val_dataloader(self):
        return DataLoader(samples(4, seed=2), batch_size=4)


@pytest.mark.filterwarnings("ignore:Swapping scheduler")
@pytest.mark.parametrize("weights", ["last", "best"])
def test_the_callback_serves_them(tmp_path, weights):
    module = Net()
    best = pl.callbacks.ModelCheckpoint(tmp_path / "kept", monitor="score", mode="min")
    callback = InfluenceCallback(samples(2, seed=1), method=GradientDot(), weights=weights)
    trainer = pl.Trainer(
        accelerator="cpu",
        default_root_dir=tmp_path,
        callbacks=[callback, pl.callbacks.StochasticWeightAveraging(swa_lrs=0.5, swa_epoch_start=1), best],
        max_epochs=3,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    trainer.fit(module, datamodule=Data())
    content = torch.load(Path(best.best_model_path), weights_only=True)
    if weights == "best":
        module.load_state_dict(content["state_dict"])
    name = "best" if weights == "best" else "epoch_003"
    section = Manifest.at(tmp_path / "influence" / "manifest.json").sections()[name]
    assert section["compared"]["weights"] == sha256_of_tensors(module.state_dict())
    assert close(stored(tmp_path, name), gradient_dots(module, loader()))
    record = FitRecord.read(content)
    assert record is not None
    assert record.n == 37
