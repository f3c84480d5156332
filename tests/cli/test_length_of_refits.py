"""How long refits of a checkpoint train that does not hold the settings of its Trainer, and by which schedule."""

import json
from typing import Any

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from tests.cli.running import ifloo

EPOCHS = 4
QUIET: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}


def rows(n, seed):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, generator=draw, dtype=torch.float64)
    return TensorDataset(x, (x[:, 0] + 0.5 * torch.randn(n, generator=draw, dtype=torch.float64) > 0).long())


class Data(L.LightningDataModule):
    def train_dataloader(self):
        return DataLoader(rows(20, 0), batch_size=20)

    def val_dataloader(self):
        return DataLoader(rows(6, 1), batch_size=6)


class Net(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.lin = torch.nn.Linear(3, 2, dtype=torch.float64)

    def training_step(self, batch, _):
        return torch.nn.functional.cross_entropy(self.lin(batch[0]), batch[1]) + 0.05 * self.lin.weight.square().sum()

    def validation_step(self, batch, _):
        self.log("val/loss", torch.nn.functional.cross_entropy(self.lin(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.5)


class Waiting(Net):
    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        plan = {"scheduler": torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer), "monitor": "val/loss"}
        return {"optimizer": optimizer, "lr_scheduler": plan}


def command(folder, name, net, *more):
    made = (f"--model={__name__}.{net.__name__}", f"--data={__name__}.Data", "--ckpt_path=own.ckpt")
    sizes = ("--attribution.top_k=2", "--refit.top_k=2", "--refit.random=2", "--attribution.damping=0.01")
    return ifloo(folder, name, *made, *sizes, "--trainer.accelerator=cpu", "--attribution.test_ids=[0]", *more)


@pytest.fixture
def trained(tmp_path):
    def train(net):
        L.seed_everything(0, verbose=False)
        trainer = L.Trainer(
            max_epochs=EPOCHS, accelerator="cpu", enable_checkpointing=False, default_root_dir=tmp_path, **QUIET
        )
        trainer.fit(net(), datamodule=Data())
        trainer.save_checkpoint(tmp_path / "own.ckpt", weights_only=False)
        return tmp_path

    return train


@pytest.mark.parametrize(
    ("flags", "words", "epochs"),
    [
        (
            [],
            f"refits: 1 epoch each (a default, since the checkpoint does not hold the settings of its Trainer; its fit "
            f"ran {EPOCHS} epochs), from the weights of the checkpoint (refit.init warm). --trainer.max_epochs gives "
            "another number.",
            1,
        ),
        (
            ["--refit.init=cold"],
            f"refits: {EPOCHS} epochs each (as many as the checkpoint had begun), from untrained models (refit.init "
            "cold). --trainer.max_epochs gives another number.",
            EPOCHS,
        ),
        (["--refit.init=cold", "--trainer.max_epochs=2"], "refits: 2 epochs each (as given), from untrained models", 2),
    ],
)
def test_refits_say_how_long_they_train_and_from_where(flags, words, epochs, trained, caplog):
    folder = trained(Net)
    assert command(folder, "influence", Net, *flags).code == 0
    done = command(folder, "loo", Net, *flags)
    assert words in caplog.text
    if epochs == 2:  # the refit with nothing removed is not the base model
        assert (done.code, "refits do not repeat the base fit" in done.err) == (1, True)
        return
    assert done.code == 0, done.err
    (manifest,) = folder.rglob("manifest.json")
    assert f'"max_epochs": {epochs}' in json.dumps(json.loads(manifest.read_text())["loo"])


@pytest.mark.parametrize("name", ["loo", "pipeline"])
def test_a_schedule_that_waits_for_validation_is_refused_before_anything_is_trained(name, trained, caplog):
    folder = trained(Waiting)
    if name == "loo":
        assert command(folder, "influence", Waiting).code == 0
    refused = command(folder, name, Waiting)
    assert refused.code == 2
    assert "when val/loss stalls, and refits do not validate" in refused.err
    assert "refits:" not in caplog.text
    assert not list(folder.rglob("*losses*"))
