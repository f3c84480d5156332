"""A user's project each of whose classes fails in another place; tests copy it into temporary folders."""

from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset, TensorDataset


def rows(n: int, seed: int) -> TensorDataset:
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return TensorDataset(x, x[:, :3].argmax(1))


class Data(L.LightningDataModule):
    def train_dataloader(self) -> Any:
        return DataLoader(rows(20, 0), batch_size=20)

    def val_dataloader(self) -> Any:
        return DataLoader(rows(6, 1), batch_size=6)


class Net(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 3, dtype=torch.float64)
        nn.init.zeros_(self.lin.weight)
        nn.init.zeros_(self.lin.bias)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return cross_entropy(self.lin(batch[0]), batch[1]) + 0.01 * self.lin.weight.square().sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class InStep(Net):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if not self.training:
            {}["label"]  # in training_step of InStep: KeyError: 'label'
        return super().training_step(batch, batch_idx)


class InProperty(Net):
    @property
    def names(self) -> Any:
        return None.split()  # type: ignore[attr-defined]  # in training_step of InProperty: AttributeError: 'NoneType' object has no attribute 'split'

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) if self.training else self.names


class InForward(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.lin(x[:, :2])  # in training_step of InForward: RuntimeError: mat1 and mat2 shapes cannot be

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) if self.training else self(batch[0]).mean()


class InInit(Net):
    def __init__(self) -> None:
        super().__init__()
        if torch.is_grad_enabled():
            [][0]  # in __init__ of InInit: IndexError: list index out of range


class InOptimizer(Net):
    def configure_optimizers(self) -> Any:
        rate = {}["lr"]  # in configure_optimizers of InOptimizer: KeyError: 'lr'
        return torch.optim.SGD(self.parameters(), lr=rate)


class InHook(Net):
    def on_train_epoch_start(self) -> None:
        assert self.lin.bias.sum() > 1, "bias"  # in on_train_epoch_start of InHook: AssertionError: bias


class InSetup(Data):
    def setup(self, stage: str) -> None:
        self.missing.open()  # in setup of InSetup: AttributeError: 'InSetup' object has no attribute 'missing'


class Items(Dataset[Any]):
    def __len__(self) -> int:
        return 20

    def __getitem__(self, i: int) -> Any:
        if i == 7:
            raise FileNotFoundError(2, "No such file", "7.png")  # in __getitem__ of Items: FileNotFoundError: [Errno 2]
        return rows(20, 0)[i]


class InItem(Data):
    def train_dataloader(self) -> Any:
        return DataLoader(Items(), batch_size=20)


def collate(samples: Any) -> Any:
    return torch.stack([x for x, _, _ in samples])  # in collate: ValueError: not enough values to unpack


class InCollate(Data):
    def train_dataloader(self) -> Any:
        return DataLoader(rows(20, 0), batch_size=20, collate_fn=collate)


class NoTests(Data):
    def val_dataloader(self) -> Any:
        return DataLoader(TensorDataset(torch.zeros(0, 4), torch.zeros(0)))
