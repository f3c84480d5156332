"""Small fits for tests of the callback: dropout, augmentation, shuffled mini-batches, stored and logged losses."""

import random
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from ifloo.models import SampleLossModule

N, FEATURES, CLASSES, EPOCHS = 37, 6, 3, 3


def samples(n: int, seed: int = 0) -> TensorDataset:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(n, FEATURES, generator=draw, dtype=torch.float64)
    return TensorDataset(x, torch.randint(CLASSES, (n,), generator=draw))


class Augmented(Dataset[Any]):
    """Data set with noise from every random state, including its own; `idx` starts at 100."""

    def __init__(self) -> None:
        self.base = samples(N)
        self.own = np.random.default_rng(0)
        self.scale = 0.01

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        x, y = self.base[i]
        drawn = [self.own.normal(), np.random.normal(), random.gauss(0, 1), float(torch.randn(()))]
        return {"x": x + self.scale * sum(drawn), "labels": y, "idx": torch.tensor(100 + i)}


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(FEATURES, 5), nn.Tanh(), nn.Dropout(0.3))


class Stated(SampleLossModule):
    """A module under the contract: sample losses and penalty."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = network(), nn.Linear(5, CLASSES)
        self.double()

    def sample_losses(self, batch):
        x, y = (batch["x"], batch["labels"]) if isinstance(batch, dict) else batch[:2]
        return nn.functional.cross_entropy(self.head(self.body(x)), y, reduction="none")

    def penalty(self):
        return 0.5 * 0.01 * sum(p.square().sum() for p in self.parameters())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


class Plain(L.LightningModule):
    """A typical user's module: a mean loss, stored until the epoch's end, and its own generator."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = network(), nn.Linear(5, CLASSES)
        self.double()
        self.kept: list[torch.Tensor] = []
        self.draw = torch.Generator().manual_seed(0)

    def training_step(self, batch, batch_idx):
        x, y = (batch["x"], batch["labels"]) if isinstance(batch, dict) else batch
        loss = nn.functional.cross_entropy(self.head(self.body(x)), y)
        if self.training:
            self.kept.append(loss)
            loss = loss * (1 + 0.01 * float(torch.rand((), generator=self.draw)))
        self.log("train_loss", loss)
        return loss

    def on_train_epoch_end(self) -> None:
        self.log("kept", torch.stack(self.kept).mean())
        self.kept.clear()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


def losses_of(model: Plain, batch: Any) -> torch.Tensor:
    """Computes the loss of `Plain` for each sample."""
    x, y = (batch["x"], batch["labels"]) if isinstance(batch, dict) else batch
    return nn.functional.cross_entropy(model.head(model.body(x)), y, reduction="none")


def loader(data: Dataset[Any] | None = None, **settings: Any) -> DataLoader[Any]:
    return DataLoader(samples(N) if data is None else data, **{"batch_size": 8, "shuffle": True, **settings})


def fitted(
    module: L.LightningModule, data: Any, callbacks: list[L.Callback], folder: Any, ckpt: Any = None, **settings: Any
) -> L.Trainer:
    trainer = L.Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        callbacks=callbacks,
        **{
            "max_epochs": EPOCHS,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "log_every_n_steps": 1,
            **settings,
        },
    )
    trainer.fit(module, data, ckpt_path=ckpt)
    return trainer
