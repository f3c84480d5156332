"""A module in the style of Hydra templates: net, optimizer and scheduler are arguments, metrics are attributes."""

from collections.abc import Callable
from functools import partial
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import MaxMetric, MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from tests.gallery.classifier import samples


class Dense(nn.Module):
    def __init__(self, sizes: tuple[int, ...] = (8, 6, 3)) -> None:
        super().__init__()
        first, second, third = sizes
        self.model = nn.Sequential(
            nn.Linear(first, second), nn.BatchNorm1d(second), nn.ReLU(), nn.Linear(second, third)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.flatten(1))


class Net(L.LightningModule):
    def __init__(
        self,
        net: nn.Module,
        optimizer: Callable[..., Any],
        scheduler: Callable[..., Any] | None,
        compile: bool,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.net, self.criterion = net, nn.CrossEntropyLoss()
        self.train_acc, self.val_acc = MulticlassAccuracy(3), MulticlassAccuracy(3)
        self.train_loss, self.val_loss, self.val_acc_best = MeanMetric(), MeanMetric(), MaxMetric()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def on_train_start(self) -> None:
        self.val_loss.reset()
        self.val_acc.reset()
        self.val_acc_best.reset()

    def model_step(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        x, y = batch
        logits = self(x)
        return self.criterion(logits, y), logits.argmax(1), y

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss, predicted, targets = self.model_step(batch)
        self.train_loss(loss)
        self.train_acc(predicted, targets)
        self.log("train/loss", self.train_loss, on_step=False, on_epoch=True, prog_bar=True)
        self.log("train/acc", self.train_acc, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        loss, predicted, targets = self.model_step(batch)
        self.val_loss(loss)
        self.val_acc(predicted, targets)
        self.log("val/loss", self.val_loss, on_step=False, on_epoch=True)
        self.log("val/acc", self.val_acc, on_step=False, on_epoch=True)

    def on_validation_epoch_end(self) -> None:
        self.val_acc_best(self.val_acc.compute())
        self.log("val/acc_best", self.val_acc_best.compute(), sync_dist=True)

    def setup(self, stage: str) -> None:
        if self.hparams.compile and stage == "fit":  # type: ignore[attr-defined]
            self.net = torch.compile(self.net, backend="aot_eager")  # type: ignore[assignment]

    def configure_optimizers(self) -> Any:
        optimizer = self.hparams.optimizer(params=self.trainer.model.parameters())  # type: ignore[attr-defined]
        if self.hparams.scheduler is None:  # type: ignore[attr-defined]
            return {"optimizer": optimizer}
        scheduler = self.hparams.scheduler(optimizer=optimizer)  # type: ignore[attr-defined]
        plan = {"scheduler": scheduler, "monitor": "val/loss", "interval": "epoch", "frequency": 1}
        return {"optimizer": optimizer, "lr_scheduler": plan}


class Data(L.LightningDataModule):
    def train_dataloader(self) -> Any:
        return DataLoader(samples(40, 2), batch_size=10, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(samples(8, 3), batch_size=8)


PLATEAU = partial(torch.optim.lr_scheduler.ReduceLROnPlateau, mode="min", factor=0.1, patience=10)


def make(compile: bool = False, scheduler: Callable[..., Any] = PLATEAU) -> tuple[Net, Data]:
    """Builds module and data as an entry script does from its configuration."""
    return Net(Dense(), partial(torch.optim.Adam, lr=0.02), scheduler, compile), Data()


def make_stepped() -> tuple[Net, Data]:
    return make(scheduler=partial(torch.optim.lr_scheduler.StepLR, step_size=2))


def make_compiled() -> tuple[Net, Data]:
    return make(compile=True)
