"""Further projects whose loss, batches, layers or weights are not what a first look at the code suggests."""

import dataclasses
from collections import namedtuple
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from tests.practice.base import D, Rows, Softmax, minimiser, rows
from tests.practice.losses import SortedRows

__all__ = ["SortedRows"]


class FrozenFeatures(Softmax):
    """Computes its features without gradients, though their parameters require them."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.lin = nn.Linear(4, 5, dtype=D), nn.Linear(5, 3, dtype=D)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        with torch.no_grad():
            features = torch.tanh(self.body(batch[0]))
        penalty = self.lin.weight.square().sum() + self.lin.bias.square().sum()
        return F.cross_entropy(self.lin(features), batch[1]) + 0.01 * penalty

    def configure_optimizers(self) -> Any:
        return minimiser(self.lin.parameters())


class StoppedForOneClass(Softmax):
    """Stops the gradient of a factor for the last class alone, which sorted data have in late rows."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        z, y = self.lin(batch[0]), batch[1]
        entropy = F.cross_entropy(z, y, reduction="none")
        with torch.no_grad():
            hard = 1 - z.softmax(1)[:, 2]
        return torch.where(y == 2, hard * entropy, entropy).mean() + self.l2()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.5)


class HookedEpoch(Softmax):
    """Sets a factor of its loss at the start of each epoch."""

    beta = 0.0

    def on_train_epoch_start(self) -> None:
        self.beta = min(1.0, self.current_epoch / 5)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        z = self.lin(batch[0])
        return F.cross_entropy(z, batch[1]) + self.beta * z.square().mean() + self.l2()


class AskedEpoch(Softmax):
    """Asks its Trainer for the epoch."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        z = self.lin(batch[0])
        share = (self.trainer.current_epoch + 1) / int(self.trainer.max_epochs or 1)
        return F.cross_entropy(z, batch[1]) + share * z.square().mean() + self.l2()


class UnsavedScale(Softmax):
    """Scales its inputs by numbers that it finds at the start of a fit and saves in no checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(4, dtype=D), persistent=False)

    def on_fit_start(self) -> None:
        x = self.trainer.datamodule.train_dataloader().dataset.tensors[0]  # type: ignore[attr-defined]
        self.scale = 3 / x.std(0)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.lin(batch[0] * self.scale), batch[1]) + self.l2()


class RowsWithState(Rows):
    """Keeps the rows it chose at random in its state, which checkpoints hold."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[int] | None = None

    def setup(self, stage: str) -> None:
        if self.kept is None:
            self.kept = torch.randperm(120)[:90].tolist()

    def state_dict(self) -> dict[str, Any]:
        return {"kept": self.kept}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.kept = state_dict["kept"]

    def train_dataloader(self) -> Any:
        x, y = rows(120, 0)
        return DataLoader(TensorDataset(x[self.kept], y[self.kept]), batch_size=90)


Pair = namedtuple("Pair", ["x", "y"])


@dataclasses.dataclass
class Sheet:
    x: Tensor
    y: Tensor
    source: str = "a table"


def named_pair(samples: Any) -> Pair:
    return Pair(torch.stack([x for x, _ in samples]), torch.stack([y for _, y in samples]))


def sheet(samples: Any) -> Sheet:
    return Sheet(*named_pair(samples))


def nested(samples: Any) -> dict[str, Any]:
    x, y = named_pair(samples)
    return {"inputs": {"x": x, "mask": None}, "targets": [y], "split": "train", "stride": 3}


class _Collated(L.LightningDataModule):
    collate: Any = None

    def train_dataloader(self) -> Any:
        return DataLoader(TensorDataset(*rows(120, 0)), batch_size=120, collate_fn=type(self).collate)

    def val_dataloader(self) -> Any:
        return DataLoader(TensorDataset(*rows(9, 1)), batch_size=9, collate_fn=type(self).collate)


class NamedPairs(_Collated):
    collate = staticmethod(named_pair)


class Sheets(_Collated):
    collate = staticmethod(sheet)


class Nested(_Collated):
    collate = staticmethod(nested)


class OfFields(Softmax):
    """Reads its batches by the names of their fields."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step((batch.x, batch.y), batch_idx)


class OfNested(Softmax):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        assert batch["split"] == "train"
        assert batch["stride"] == 3
        return super().training_step((batch["inputs"]["x"], batch["targets"][0]), batch_idx)


class Whole(Dataset[Any]):
    """Batches of one row, made by the dataset itself."""

    def __init__(self, n: int, seed: int) -> None:
        self.x, self.y = rows(n, seed)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Any:
        if i >= len(self):
            raise IndexError(i)
        return self.x[i : i + 1], self.y[i : i + 1]


class BatchedByTheDataset(L.LightningDataModule):
    def train_dataloader(self) -> Any:
        return DataLoader(Whole(60, 0), batch_size=None)

    def val_dataloader(self) -> Any:
        return DataLoader(Whole(9, 1), batch_size=None)


class Descent(Softmax):
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.5)


class NumberedRows(Dataset[Any]):
    """Rows that are numbered from −1 on."""

    def __init__(self, n: int, seed: int) -> None:
        self.x, self.y = rows(n, seed)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Any:
        return {"x": self.x[i], "y": self.y[i], "idx": i - 1}


class Numbered(L.LightningDataModule):
    def train_dataloader(self) -> Any:
        return DataLoader(NumberedRows(120, 0), batch_size=120)

    def val_dataloader(self) -> Any:
        return DataLoader(NumberedRows(9, 1), batch_size=9)


class Broken(Dataset[Any]):
    """Fails at one late row, by a mistake of its author, once a fit is over."""

    over = False

    def __init__(self) -> None:
        self.x, self.y = rows(120, 0)

    def __len__(self) -> int:
        return 120

    def __getitem__(self, i: int) -> Any:
        if type(self).over and i == 77:
            return self.x[i], self.labels[i]  # type: ignore[attr-defined]  # the line that fails
        return self.x[i], self.y[i]


class BrokenRows(Rows):
    def train_dataloader(self) -> Any:
        return DataLoader(Broken(), batch_size=120)


class Counted(Dataset[Any]):
    """Counts how often its rows are read."""

    reads = 0

    def __init__(self, n: int, seed: int) -> None:
        self.x, self.y = rows(n, seed)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Any:
        type(self).reads += 1
        return self.x[i], self.y[i]


class CountedRows(Rows):
    def train_dataloader(self) -> Any:
        return DataLoader(Counted(120, 0), batch_size=120)


class FunctionalHead(Softmax):
    """Ends in a parameter of its own, used as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.lin, self.weight = nn.Linear(4, 5, dtype=D), nn.Parameter(torch.randn(3, 5, dtype=D))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(F.linear(torch.tanh(self.lin(batch[0])), self.weight), batch[1]) + self.l2()


class Attentive(Softmax):
    """Attends in its body; the last linear layer that is registered is not its head."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 3, dtype=D)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True, dtype=D)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = batch[0][:, None] * torch.linspace(0.5, 1.5, 3, dtype=D)[:, None]
        attended = self.attention(x, x, x, need_weights=False)[0]
        return F.cross_entropy(self.lin(attended.mean(1)), batch[1]) + self.l2()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.5)


class Rounding(L.Callback):
    """Rounds the weights when training has ended."""

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        with torch.no_grad():
            for p in pl_module.parameters():
                p.copy_((8 * p).round() / 8)


class Watched(Descent):
    """Logs a loss by which a best checkpoint is chosen: that of the first epoch."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", float(self.current_epoch))
