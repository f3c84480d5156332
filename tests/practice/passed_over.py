"""Projects with samples that a training step passes over: the loss of each of them alone is 0/0."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from tests.practice.base import D, Rows, Softmax, rows

WEIGHTS = torch.tensor([1.0, 0.0, 3.0], dtype=D)
RARE = 12  # rows of the class without weight, in data where it is rare


class ClassLeftOut(Softmax):
    """Gives one of its classes the weight zero."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.lin(batch[0]), batch[1], weight=WEIGHTS.to(batch[0])) + self.l2()


class TensorsOfValues(ClassLeftOut):
    """Has a branch on a value, so that its losses are computed one sample at a time."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss * 1.0 if loss.item() > 0.1 else loss


class AllClasses(Rows):
    """Tests are of classes with a weight."""

    def val_dataloader(self) -> Any:
        x, y = rows(9, 1)
        return DataLoader(TensorDataset(x[y != 1], y[y != 1]), batch_size=9)


def rare(n: int) -> tuple[Tensor, Tensor]:
    """Returns n rows, of which few have no weight."""
    x, y = rows(5 * n, 0)
    last = (y == 1).nonzero().flatten()[:RARE]
    chosen = torch.cat([(y != 1).nonzero().flatten()[: n - RARE], last])
    return x[chosen], y[chosen]


class RareClass(AllClasses):
    def train_dataloader(self) -> Any:
        return DataLoader(TensorDataset(*rare(400)), batch_size=400, shuffle=True)


def masked(n: int, seed: int, every: int) -> tuple[Tensor, Tensor]:
    """Returns texts of six tokens with labels of some of them; one in `every` texts has none."""
    x, y = rows(6 * n, seed)
    x, y = x.view(n, 6, 4), y.view(n, 6).clone()
    hidden = torch.rand(n, 6, generator=torch.Generator().manual_seed(seed + 5)) < 0.5
    hidden[:, 0] = False
    hidden[::every] = True
    if seed:
        hidden[:, 0] = False
    return x, y.masked_fill(hidden, -100)


class Masked(Softmax):
    """Has a mean over all tokens with a label, as masked language models have."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.lin(batch[0]).flatten(0, 1), batch[1].flatten()) + self.l2()


class Texts(Rows):
    def train_dataloader(self) -> Any:
        return DataLoader(TensorDataset(*masked(120, 0, 9)), batch_size=120, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(TensorDataset(*masked(4, 1, 9)), batch_size=4)
