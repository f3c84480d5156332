"""Projects whose data or weights are others at another moment."""

from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset, random_split

from tests.practice.base import Softmax, rows


class Descent(Softmax):
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1.0)


class SmallBatches(L.LightningDataModule):
    def train_dataloader(self) -> Any:
        return DataLoader(TensorDataset(*rows(120, 0)), batch_size=20, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(TensorDataset(*rows(9, 1)), batch_size=9)


class SplitAtRandom(L.LightningDataModule):
    """Splits its rows by the random state that it finds."""

    seed: int | None = None

    def setup(self, stage: str) -> None:
        draw = None if self.seed is None else torch.Generator().manual_seed(self.seed)
        self.parts = random_split(TensorDataset(*rows(130, 0)), [100, 30], generator=draw)

    def train_dataloader(self) -> Any:
        return DataLoader(self.parts[0], batch_size=100)

    def val_dataloader(self) -> Any:
        return DataLoader(self.parts[1], batch_size=30)


class SplitByAGenerator(SplitAtRandom):
    seed = 7


class Shifted(Dataset[Any]):
    """Rows that are shifted by one, each time they are read, with a probability of one half."""

    def __init__(self, n: int, seed: int, shift: float | None = None) -> None:
        self.rows, self.shift = rows(n, seed), shift

    def __len__(self) -> int:
        return len(self.rows[0])

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        shift = float(torch.rand(()) < 0.5) if self.shift is None else self.shift
        return self.rows[0][i] + shift, self.rows[1][i]


class Augmented(L.LightningDataModule):
    def train_dataloader(self) -> Any:
        return DataLoader(Shifted(120, 0), batch_size=120)

    def val_dataloader(self) -> Any:
        return DataLoader(TensorDataset(*rows(9, 1)), batch_size=9)
