"""A user's project that does not know ifloo; tests copy it into temporary folders."""

from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from ifloo.data import MNISTDataModule


class Digits(L.LightningDataModule):
    def __init__(self, train: int = 60, test: int = 12) -> None:
        super().__init__()
        self.save_hyperparameters()

    def setup(self, stage: str) -> None:
        digits = MNISTDataModule(source="embedded", train_limit=self.hparams["train"], test_limit=self.hparams["test"])
        digits.setup()
        self.sets = [TensorDataset(part.x, part.labels) for part in (digits.train_set, digits.test_set)]

    def train_dataloader(self) -> Any:
        return DataLoader(self.sets[0], batch_size=self.hparams["train"])

    def val_dataloader(self) -> Any:
        return DataLoader(self.sets[1], batch_size=self.hparams["test"])


class Softmax(L.LightningModule):
    def __init__(self, decay: float = 0.0) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.linear = nn.Linear(784, 10, bias=False, dtype=torch.float64)
        nn.init.zeros_(self.linear.weight)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = cross_entropy(self.linear(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_accuracy", (self.linear(x).argmax(1) == y).double().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.LBFGS(self.parameters(), max_iter=200, line_search_fn="strong_wolfe")


class SingleDigits(Digits):
    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.sets = [TensorDataset(one.tensors[0].float(), one.tensors[1]) for one in self.sets]


class SingleSoftmax(Softmax):
    def __init__(self, decay: float = 0.0) -> None:
        super().__init__(decay)
        self.float()


class Contrastive(Softmax):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        z = self.linear(batch[0])
        return cross_entropy(z @ z.T, torch.arange(len(z)))


def outputs(model: Softmax, batch: Any) -> Tensor:
    return model.linear(batch[0])


def output_losses(z: Tensor, batch: Any) -> Tensor:
    return cross_entropy(z, batch[1], reduction="none")


def losses(model: Softmax, batch: Any) -> Tensor:
    return cross_entropy(model.linear(batch[0]), batch[1], reduction="none")


def reduced(model: Softmax, batch: Any) -> Tensor:
    return cross_entropy(model.linear(batch[0]), batch[1])


nothing_to_call = 3
