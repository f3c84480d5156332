"""Further quick projects: matrix factorisation, several validation loaders, a module of pytorch_lightning."""

from typing import Any

import lightning as L
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tests.gallery.classifier import Backbone, samples


class MatrixFactorization(L.LightningModule):
    def __init__(self, n_users: int, n_items: int, n_factors: int = 2) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.user_factors, self.item_factors = nn.Embedding(n_users, n_factors), nn.Embedding(n_items, n_factors)
        self.user_bias, self.item_bias = nn.Embedding(n_users, 1), nn.Embedding(n_items, 1)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        dot = (self.user_factors(user) * self.item_factors(item)).sum(1)
        return dot + self.user_bias(user).squeeze(1) + self.item_bias(item).squeeze(1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        user, item, rating = batch
        loss = F.mse_loss(self(user, item), rating)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        user, item, rating = batch
        self.log("val_loss", F.mse_loss(self(user, item), rating))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.05)


class Ratings(L.LightningDataModule):
    def _set(self, n: int, seed: int) -> TensorDataset:
        draw = torch.Generator().manual_seed(seed)
        user, item = torch.randint(9, (n,), generator=draw), torch.randint(7, (n,), generator=draw)
        return TensorDataset(user, item, ((user * item) % 5).float())

    def train_dataloader(self) -> Any:
        return DataLoader(self._set(40, 0), batch_size=10, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(self._set(6, 1), batch_size=6)


class TwoLoaders(L.LightningModule):
    """Watches two validation sets."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.backbone(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("val_loss", F.cross_entropy(self.backbone(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.02)


class TwoLoadersData(L.LightningDataModule):
    def train_dataloader(self) -> Any:
        return DataLoader(samples(40, 4), batch_size=10, shuffle=True)

    def val_dataloader(self) -> Any:
        return [DataLoader(samples(6, seed), batch_size=6) for seed in (5, 6)]


class Older(pl.LightningModule):
    """A module of the package's other name, trained to a minimum."""

    def __init__(self, decay: float = 1e-2) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = nn.Linear(8, 3)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        penalty = self.hparams.decay * self.layer.weight.square().sum()  # type: ignore[attr-defined]
        return F.cross_entropy(self.layer(batch[0].flatten(1)), batch[1]) + penalty

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self.layer(batch[0].flatten(1)), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters(), max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-9)


class OlderData(pl.LightningDataModule):
    def train_dataloader(self) -> Any:
        return DataLoader(samples(40, 7), batch_size=40)

    def val_dataloader(self) -> Any:
        return DataLoader(samples(6, 8), batch_size=6)
