"""A user's project whose data are split at random, augmented, or decoded at each read; tests copy it into folders."""

import os
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import BatchSampler, DataLoader, Dataset, WeightedRandomSampler, random_split


class Rows(Dataset[Any]):
    """Samples made at each read, as decoded images are; each read is a line of the file that READS names."""

    def __init__(self, n: int = 80, noise: float = 0.0) -> None:
        self.n, self.noise = n, noise

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        if i >= self.n:
            raise IndexError(i)
        if name := os.environ.get("READS"):
            with open(name, "a") as file:
                print(i, file=file)
        generator = torch.Generator().manual_seed(i)
        x = torch.randn(4, generator=generator, dtype=torch.float64)
        y = (x[:3] + 0.7 * torch.randn(3, generator=generator, dtype=torch.float64)).argmax()
        return x + self.noise * torch.randn(4, dtype=torch.float64), y


class Split(L.LightningDataModule):
    """A split without a generator, as in Lightning's own example."""

    def setup(self, stage: str) -> None:
        self.train, self.val = random_split(Rows(), [60, 20])

    def train_dataloader(self) -> Any:
        return DataLoader(self.train, batch_size=60)

    def val_dataloader(self) -> Any:
        return DataLoader(self.val, batch_size=20)


class Whole(Split):
    def setup(self, stage: str) -> None:
        self.train, self.val = Rows(), Rows(20)

    def train_dataloader(self) -> Any:
        return DataLoader(self.train, batch_size=80)


class Batches(Whole):
    def train_dataloader(self) -> Any:
        return DataLoader(self.train, batch_size=20)


class Augmented(Whole):
    def setup(self, stage: str) -> None:
        self.train, self.val = Rows(noise=0.1), Rows(20)


class Weighted(Whole):
    """A weighted sampler within a batch sampler, which a loader shows nothing of."""

    def train_dataloader(self) -> Any:
        drawn = WeightedRandomSampler([1.0 + i % 3 for i in range(80)], 1600)
        return DataLoader(self.train, batch_sampler=BatchSampler(drawn, 1600, False))


class Softmax(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3, dtype=torch.float64)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return cross_entropy(self.linear(x), y) + 0.01 * sum(p.square().sum() for p in self.parameters())

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("accuracy", (self.linear(x).argmax(1) == y).double().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.LBFGS(self.parameters(), max_iter=300, line_search_fn="strong_wolfe", tolerance_grad=1e-12)


def make() -> tuple[Softmax, L.LightningDataModule]:
    """Builds both, with a split of its own, as scripts do."""
    data = Whole()
    train, val = random_split(Rows(), [60, 20])
    data.setup = lambda stage: setattr(data, "parts", (train, val))  # type: ignore[assignment]
    data.train_dataloader = lambda: DataLoader(train, batch_size=60)  # type: ignore[method-assign]
    data.val_dataloader = lambda: DataLoader(val, batch_size=20)  # type: ignore[method-assign]
    return Softmax(), data
