"""Projects whose loss depends on more than parameters and batch."""

from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, TensorDataset, WeightedRandomSampler

from tests.practice.base import D, Rows, Softmax, minimiser, rows

CLASS_WEIGHTS = torch.tensor([1.0, 5.0, 2.0], dtype=D)


def focal(model: Any, batch: Any) -> Tensor:
    """Computes losses whose factor of difficulty is not differentiated."""
    entropy = F.cross_entropy(model(batch[0]), batch[1], reduction="none")
    with torch.no_grad():
        weight = 1 - (-F.cross_entropy(model(batch[0]), batch[1], reduction="none")).exp()
    return weight * entropy


def focal_detached(model: Any, batch: Any) -> Tensor:
    """Computes the same losses by `detach`, which acts on every kind of derivative."""
    entropy = F.cross_entropy(model(batch[0]), batch[1], reduction="none")
    return (1 - (-entropy.detach()).exp()) * entropy


class Focal(Softmax):
    def forward(self, x: Tensor) -> Tensor:
        return self.lin(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return focal(self, batch).mean() + self.l2()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1.0)


class DeepFocal(Focal):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 4, dtype=D)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin(torch.tanh(self.body(x)))


class HalvedGradient(Softmax):
    """Scales the gradient of its logits by a tensor hook."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        z = self.lin(batch[0])
        if z.requires_grad:
            z.register_hook(lambda gradient: 0.5 * gradient)
        return F.cross_entropy(z, batch[1]) + self.l2()


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (8 * x).round() / 8

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class StraightThrough(Softmax):
    """Rounds its logits in the forward pass alone."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(_Rounded.apply(self.lin(batch[0])), batch[1]) + self.l2()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.5)


def by_class(n: int, seed: int) -> tuple[Tensor, Tensor]:
    x, y = rows(n, seed)
    order = y.argsort(stable=True)
    return x[order], y[order]


class SortedRows(Rows):
    def train_dataloader(self) -> Any:
        return DataLoader(TensorDataset(*by_class(120, 0)), batch_size=120, shuffle=True)


class ClassWeighted(Softmax):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.lin(batch[0]), batch[1], weight=CLASS_WEIGHTS.to(batch[0])) + self.l2()


class WarmedUp(Softmax):
    """Adds a term whose weight grows with the epoch."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        z = self.lin(batch[0])
        return F.cross_entropy(z, batch[1]) + min(1.0, self.current_epoch / 5) * z.square().mean() + self.l2()


class Annealed(Softmax):
    """Adds a term whose weight depends on the share of the steps that are done."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        z = self.lin(batch[0])
        done = self.global_step / max(1, int(self.trainer.estimated_stepping_batches))
        return F.cross_entropy(z, batch[1]) + min(1.0, 2 * done) * z.square().mean() + self.l2()


class ResampledRows(Rows):
    """Draws its rows by class, inside a batch sampler."""

    def train_dataloader(self) -> Any:
        x, y = rows(120, 0)
        draws = WeightedRandomSampler(torch.tensor([1.0, 6.0, 1.0])[y], 2400)
        return DataLoader(TensorDataset(x, y), batch_sampler=BatchSampler(draws, 2400, False))


class Transferred(Softmax):
    """Scales its inputs where batches are moved to the device."""

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        x, y = super().transfer_batch_to_device(batch, device, dataloader_idx)
        return x * 3 + 1, y


class ScaledRows(Rows):
    """The same hook, in the data module."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch[0] * 3 + 1, batch[1]


class Smoothed(Softmax):
    """Smooths labels in training mode alone."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        smoothing = 0.2 if self.training else 0.0
        return F.cross_entropy(self.lin(batch[0]), batch[1], label_smoothing=smoothing) + self.l2()


class HeadTrained(Softmax):
    """Gives its optimizer the last layer alone, and freezes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.lin = nn.Linear(4, 6, dtype=D), nn.Linear(6, 3, dtype=D)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        entropy = F.cross_entropy(self.lin(torch.tanh(self.body(batch[0]))), batch[1])
        return entropy + 0.01 * self.lin.weight.square().sum() + 0.01 * self.lin.bias.square().sum()

    def configure_optimizers(self) -> Any:
        return minimiser(self.lin.parameters())


class MaskedGradient(Softmax):
    """Never changes the weights of one input, by a hook of its own after each backward pass."""

    def on_after_backward(self) -> None:
        assert self.lin.weight.grad is not None
        self.lin.weight.grad[:, 2] = 0

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1.0)


def prices(n: int, seed: int) -> tuple[Tensor, Tensor]:
    x, _ = rows(n, seed)
    draw = torch.Generator().manual_seed(seed + 99)
    return x, 300 + 40 * (x.sum(1) + torch.randn(n, generator=draw, dtype=D))


class Prices(L.LightningDataModule):
    def train_dataloader(self) -> Any:
        return DataLoader(TensorDataset(*prices(120, 0)), batch_size=120)

    def val_dataloader(self) -> Any:
        return DataLoader(TensorDataset(*prices(9, 1)), batch_size=9)


class Standardised(Softmax):
    """Standardises its targets by numbers that it writes into its checkpoints and reads back."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 1, dtype=D)
        self.mean, self.std = 0.0, 1.0

    def on_fit_start(self) -> None:
        y = self.trainer.datamodule.train_dataloader().dataset.tensors[1]  # type: ignore[attr-defined]
        self.mean, self.std = float(y.mean()), float(y.std())

    def on_save_checkpoint(self, checkpoint: Any) -> None:
        checkpoint["scaler"] = [self.mean, self.std]

    def on_load_checkpoint(self, checkpoint: Any) -> None:
        self.mean, self.std = checkpoint["scaler"]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return (self.lin(batch[0]).squeeze(1) - (batch[1] - self.mean) / self.std).square().mean() + self.l2()
