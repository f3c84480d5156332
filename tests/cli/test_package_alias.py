"""Projects that import `pytorch_lightning` on the command line."""

import sys
import warnings
from pathlib import Path

import lightning as L
import pytest

from ifloo.cli.package_alias import one_lightning
from ifloo.store import influences
from tests.cli.running import done, ifloo

SOURCE = """
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

class Data(pl.LightningDataModule):
    def train_dataloader(self):
        x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=20)

    def val_dataloader(self):
        return DataLoader(TensorDataset(torch.ones(2, 3).double(), torch.ones(2, 1).double()), batch_size=2)

class Net(pl.LightningModule):
    def __init__(self, width):
        super().__init__()
        self.save_hyperparameters()
        self.lin = nn.Linear(width, 1, dtype=torch.float64)

    def training_step(self, batch, batch_idx):
        return (self.lin(batch[0]) - batch[1]).square().mean() + 0.1 * self.lin.weight.square().sum()

    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), max_iter=200, line_search_fn="strong_wolfe")
"""


def test_a_project_of_the_other_import_is_scored(tmp_path, monkeypatch):
    pl = pytest.importorskip("pytorch_lightning")
    (tmp_path / "of_the_other_import.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    import of_the_other_import as own

    assert issubclass(own.Net, pl.LightningModule)
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Lightning's advice to the author
        trainer.fit(own.Net(3), datamodule=own.Data())
    trainer.save_checkpoint(tmp_path / "c.ckpt")
    del sys.modules["of_the_other_import"]
    named = ("--model=of_the_other_import.Net", "--data=of_the_other_import.Data")
    done(ifloo(tmp_path, "influence", *named, "--ckpt_path=c.ckpt", "--trainer.accelerator=cpu"))
    assert len(influences.load(next(Path(tmp_path).rglob("influences_test_0.npz"))).scores) == 20
    assert sys.modules["pytorch_lightning"] is pl


def test_both_names_give_the_same_classes_until_the_end():
    before = {name: module for name, module in sys.modules.items() if name.startswith("pytorch_lightning")}
    spec = L.pytorch.__spec__
    with one_lightning():
        import pytorch_lightning as pl
        from pytorch_lightning.callbacks import ModelCheckpoint

        assert pl.LightningModule is L.LightningModule
        assert ModelCheckpoint is L.pytorch.callbacks.ModelCheckpoint
        with pytest.raises(ModuleNotFoundError):
            import pytorch_lightning.absent  # ruff: ignore[unused-import]
    assert L.pytorch.__spec__ is spec
    assert {name: one for name, one in sys.modules.items() if name.startswith("pytorch_lightning")} == before
