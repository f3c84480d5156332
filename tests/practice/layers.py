"""Projects whose last layer is not the one that is registered last."""

from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tests.practice.base import D, Softmax


class Unused(Softmax):
    """Registers a projection after the head, and never calls it in training."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.lin = nn.Linear(4, 5, dtype=D), nn.Linear(5, 3, dtype=D)
        self.proj = nn.Linear(5, 8, dtype=D)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.lin(torch.tanh(self.body(batch[0]))), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.5)


class HeadFirst(Unused):
    """Registers its head before its backbone."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.proj = nn.Identity(), nn.Identity()  # type: ignore[assignment]
        self.backbone = nn.Sequential(nn.Linear(4, 6, dtype=D), nn.Tanh(), nn.Linear(6, 5, dtype=D))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.lin(torch.tanh(self.backbone(batch[0]))), batch[1])


class PixelHead(Softmax):
    """Ends in a convolution of one pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Conv1d(4, 3, 1, dtype=D)  # type: ignore[assignment]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.lin(batch[0][..., None])[..., 0], batch[1]) + self.l2()


class Embedded(Softmax):
    """Has no linear layer at all."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = None  # type: ignore[assignment]
        self.scale = nn.Parameter(torch.ones(3, dtype=D))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(batch[0][:, :3] * self.scale, batch[1]) + self.l2()


class Tied(Softmax):
    """Shares the weight of its head with its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = None  # type: ignore[assignment]
        self.emb, self.head = nn.Embedding(7, 5, dtype=D), nn.Linear(5, 7, dtype=D)
        self.head.weight = self.emb.weight

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.head(torch.tanh(self.emb(batch[0]))), batch[1]) + self.l2()


class Tokens(L.LightningDataModule):
    def _loader(self, n: int, seed: int) -> Any:
        draw = torch.Generator().manual_seed(seed)
        x = torch.randint(7, (n,), generator=draw)
        return DataLoader(TensorDataset(x, (x + torch.randint(3, (n,), generator=draw)) % 7), batch_size=n)

    def train_dataloader(self) -> Any:
        return self._loader(120, 0)

    def val_dataloader(self) -> Any:
        return self._loader(9, 1)
