"""A plain LightningModule and DataModule, and functions for `--adapt.sample_losses` and `--build`.

python plain.py        an ordinary fit and checkpoint; then, on one line,
ifloo influence --model plain.DigitCNN --data plain.Digits --ckpt_path digits.ckpt
    --attribution.parameters "['head.*']" --attribution.damping 0.001
"""

from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from ifloo.data import MNISTDataModule


class Digits(L.LightningDataModule):
    def __init__(self, train: int = 1000, test: int = 200, batch_size: int = 100, corrupt: float = 0.0) -> None:
        super().__init__()
        self.save_hyperparameters()

    def setup(self, stage: str | None = None) -> None:
        train, test, corrupt = (self.hparams[name] for name in ("train", "test", "corrupt"))
        digits = MNISTDataModule(source="embedded", train_limit=train, test_limit=test, corrupt=corrupt)
        digits.setup()
        self.corrupted_ids = digits.corrupted_ids  # wrong labels, if any: the verdict counts those that rankings find
        self.train, self.test = (
            TensorDataset(part.x.float().view(-1, 1, 28, 28), part.labels)
            for part in (digits.train_set, digits.test_set)
        )

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.train, batch_size=self.hparams["batch_size"], shuffle=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.test, batch_size=200)


class DigitCNN(L.LightningModule):
    def __init__(self, width: int = 8, lr: float = 3e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.features = nn.Sequential(
            *(nn.Conv2d(1, width, 5, stride=2), nn.Tanh(), nn.Conv2d(width, 2 * width, 5, stride=2), nn.Tanh()),
            *(nn.Flatten(), nn.Linear(2 * width * 16, 96), nn.Tanh()),
        )
        self.head = nn.Linear(96, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x))
        return logits

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.hparams["lr"])


def sample_losses(model: DigitCNN, batch: Any) -> Tensor:
    return cross_entropy(model(batch[0]), batch[1], reduction="none")


def make() -> tuple[DigitCNN, Digits]:
    return DigitCNN(), Digits()


if __name__ == "__main__":
    L.seed_everything(0)
    trainer = L.Trainer(max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.fit(DigitCNN(), datamodule=Digits())
    trainer.save_checkpoint("digits.ckpt")
