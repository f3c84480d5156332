"""A quick project in one class: the module holds its data and its split."""

from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, random_split

from tests.gallery.classifier import samples


class Net(L.LightningModule):
    def __init__(self, hidden_size: int = 5, learning_rate: float = 2e-2) -> None:
        super().__init__()
        self.hidden_size, self.learning_rate = hidden_size, learning_rate
        self.model = nn.Sequential(
            nn.Flatten(), nn.Linear(8, hidden_size), nn.ReLU(), nn.Dropout(0.1), nn.Linear(hidden_size, 3)
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.log_softmax(self.model(x), dim=1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        loss = F.nll_loss(self(x), y)
        self.log("train_loss", loss.item(), prog_bar=True)
        return {"loss": loss, "seen": len(y)}

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_acc", (self(x).argmax(1) == y).float().mean(), prog_bar=True)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)

    def setup(self, stage: str | None = None) -> None:
        if stage == "fit" or stage is None:
            self.train_part, self.valid_part = random_split(samples(48, 1), [40, 8], torch.Generator().manual_seed(0))

    def train_dataloader(self) -> Any:
        return DataLoader(self.train_part, batch_size=8, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(self.valid_part, batch_size=8)
