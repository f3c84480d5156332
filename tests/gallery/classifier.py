"""A classifier in the style of LightningCLI templates: a backbone that is no hyper-parameter, a seeded split."""

from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LightningCLI
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split


class Backbone(nn.Module):
    def __init__(self, hidden: int = 6) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, hidden), nn.Linear(hidden, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x.flatten(1))))


class Net(L.LightningModule):
    def __init__(self, backbone: Backbone | None = None, learning_rate: float = 0.02) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["backbone"])
        self.backbone = Backbone() if backbone is None else backbone

    def forward(self, x: Tensor) -> Tensor:
        return self.backbone(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("valid_loss", F.cross_entropy(self(x), y))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.hparams.learning_rate)  # type: ignore[attr-defined]


def samples(n: int, seed: int = 0) -> TensorDataset:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 2, 4, generator=draw)
    return TensorDataset(x, (x[:, 0, :3] + 0.5 * torch.randn(n, 3, generator=draw)).argmax(1))


class Data(L.LightningDataModule):
    def __init__(self, batch_size: int = 10) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.batch_size = batch_size

    @staticmethod
    def split() -> Any:
        return random_split(samples(48), [40, 8], torch.Generator().manual_seed(42))

    def setup(self, stage: str) -> None:
        self.train, self.valid = self.split()

    def train_dataloader(self) -> Any:
        return DataLoader(self.train, batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(self.valid, batch_size=self.batch_size)


def cli(*arguments: str) -> LightningCLI:
    """Builds module, data and Trainer as the template's `main` does, without running anything."""
    return LightningCLI(
        Net, Data, args=list(arguments), run=False, save_config_callback=None, seed_everything_default=1234
    )
