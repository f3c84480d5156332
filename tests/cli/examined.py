"""A plain module and its data for the command line."""

import lightning as L
import torch
from torch import nn, optim
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

N = 120


class Network(L.LightningModule):
    """A perceptron with dropout and an optimizer that decays weights."""

    def __init__(self, dropout: float = 0.0, decay: float = 0.0):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Dropout(dropout), nn.Linear(6, 3))

    def training_step(self, batch, index):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, index):
        self.log("loss", self.training_step(batch, index))

    def configure_optimizers(self):
        return optim.Adam(self.parameters(), lr=0.01, weight_decay=self.hparams.decay)


class Noisy(Dataset):
    """Data set with new random numbers at each read, from a generator of its own."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(0)

    def __len__(self):
        return N

    def __getitem__(self, i):
        return torch.randn(4, generator=self.generator), i % 3, i


class Rows(L.LightningDataModule):
    """Data module of fixed rows in batches of 30, or of noise."""

    def __init__(self, noisy: bool = False):
        super().__init__()
        self.save_hyperparameters()

    def train_dataloader(self):
        return DataLoader(Noisy() if self.hparams.noisy else self._rows(), batch_size=30)

    def val_dataloader(self):
        return DataLoader(self._rows(), batch_size=30)

    def _rows(self):
        x = torch.randn(N, 4, generator=torch.Generator().manual_seed(0))
        return TensorDataset(x, torch.arange(N) % 3, torch.arange(N))
