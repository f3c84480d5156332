"""Projects that use what Lightning offers when a module is built, set up, loaded and run."""

import functools
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
import torchmetrics
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tests.practice.base import D, Rows, Softmax, minimiser, rows

LONG_LBFGS = functools.partial(torch.optim.LBFGS, max_iter=300)


class ConfiguredLater(Softmax):
    """Makes its layer in `configure_model`."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = None  # type: ignore[assignment]

    def configure_model(self) -> None:
        if self.lin is None:
            self.lin = nn.Linear(4, 3, dtype=D)


class MadeInSetup(Softmax):
    """Makes its layer in `setup`, by the width of its Trainer's data."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = None  # type: ignore[assignment]

    def setup(self, stage: str) -> None:
        if self.lin is None:
            width = self.trainer.datamodule.train_dataloader().dataset.tensors[0].shape[1]  # type: ignore[attr-defined]
            self.lin = nn.Linear(width, 3, dtype=D)


class Lazy(Softmax):
    """Finds the width of its layer in the first batch, in `setup`."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.LazyLinear(3, dtype=D)

    def setup(self, stage: str) -> None:
        self.lin(torch.zeros(1, 4, dtype=D))


class FrozenBase(Softmax):
    """Trains factors beside a frozen layer, which its checkpoints leave out."""

    def __init__(self) -> None:
        super().__init__()
        self.strict_loading = False
        self.lin = None  # type: ignore[assignment]
        torch.manual_seed(5)
        self.base = nn.Linear(4, 3, dtype=D).requires_grad_(False)
        self.A, self.B = nn.Parameter(torch.randn(1, 4, dtype=D)), nn.Parameter(torch.zeros(3, 1, dtype=D))

    def on_save_checkpoint(self, checkpoint: Any) -> None:
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in ("A", "B")}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        z = self.base(batch[0]) + batch[0] @ self.A.T @ self.B.T
        return F.cross_entropy(z, batch[1]) + 0.01 * (self.A.square().sum() + self.B.square().sum())

    def configure_optimizers(self) -> Any:
        return minimiser([self.A, self.B])


class FolderOfRuns(Softmax):
    """Keeps a path among its hyper-parameters."""

    def __init__(self, out: Path = Path("runs")) -> None:
        super().__init__()
        self.save_hyperparameters()


class OptimizerGiven(Softmax):
    """Keeps a partial of an optimizer among its hyper-parameters."""

    def __init__(self, optimizer: Any = LONG_LBFGS) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.optimizer = optimizer

    def configure_optimizers(self) -> Any:
        return self.optimizer(self.parameters(), line_search_fn="strong_wolfe", tolerance_grad=1e-12)


class Sized(Softmax):
    """Has no default for its sizes."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.lin = nn.Linear(width, classes, dtype=D)


class SizedRows(L.LightningDataModule):
    """Has no default for the number of its rows."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.count = count

    def train_dataloader(self) -> Any:
        return DataLoader(TensorDataset(*rows(self.count, 0)), batch_size=self.count)

    def val_dataloader(self) -> Any:
        return DataLoader(TensorDataset(*rows(9, 1)), batch_size=9)


def make() -> tuple[Any, Any]:
    return Sized(4, 3), SizedRows(60)


class WorldSized(Rows):
    """Divides its batches among the processes of its Trainer."""

    def train_dataloader(self) -> Any:
        assert self.trainer is not None
        return DataLoader(TensorDataset(*rows(120, 0)), batch_size=120 // self.trainer.world_size)


class LoggerReader(Softmax):
    """Calls its logger itself."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        assert self.logger is not None
        self.logger.log_metrics({"x": 0.0}, step=batch_idx)
        return super().training_step(batch, batch_idx)


class TrainerReader(Softmax):
    """Asks its Trainer and its optimizer within a step."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        rate = self.optimizers().param_groups[0]["lr"]  # type: ignore[union-attr]
        self.log("rate", rate)
        assert self.trainer.max_epochs == 3
        loss: Tensor = super().training_step(batch, batch_idx)
        self.log("loss", loss.item())
        return loss


class Measured(Softmax):
    """Updates metrics in its training step."""

    def __init__(self) -> None:
        super().__init__()
        self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=3)
        self.mean = torchmetrics.MeanMetric()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        z = self.lin(batch[0])
        loss = F.cross_entropy(z, batch[1]) + self.l2()
        self.log("accuracy", self.accuracy(z, batch[1]), prog_bar=True)
        self.mean(loss)
        self.log("mean", self.mean, on_epoch=True)
        return loss


class EmptyTests(Rows):
    def val_dataloader(self) -> Any:
        return DataLoader(TensorDataset(*rows(0, 1)), batch_size=9)


class TestsOfAnotherForm(Rows):
    """Has test batches of one item, which the training step cannot read."""

    def val_dataloader(self) -> Any:
        return DataLoader(TensorDataset(rows(9, 1)[0]), batch_size=9)


class TwoTests(Rows):
    """Has two validation loaders."""

    def val_dataloader(self) -> Any:
        return [DataLoader(TensorDataset(*rows(9, seed)), batch_size=9) for seed in (1, 2)]


class WithItsData(Softmax):
    """Holds its loaders itself."""

    def train_dataloader(self) -> Any:
        return DataLoader(TensorDataset(*rows(120, 0)), batch_size=120)

    def val_dataloader(self) -> Any:
        return DataLoader(TensorDataset(*rows(9, 1)), batch_size=9)


class Mistaken(Softmax):
    """Fails where it is scored: its author renamed an attribute after the fit."""

    renamed = False

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        z = self.linear(batch[0]) if type(self).renamed else self.lin(batch[0])  # the line that fails
        return F.cross_entropy(z, batch[1]) + self.l2()


class Misread(Softmax):
    """Fails with any kind of exception, by a key that is not there."""

    renamed = False

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if type(self).renamed:
            raise KeyError("labels")  # the line that fails
        return super().training_step(batch, batch_idx)


class Deep(Softmax):
    """A network whose Hessian is indefinite where a short fit ends; its schedule asks the Trainer."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.lin = nn.Linear(4, 6, dtype=D), nn.Linear(6, 3, dtype=D)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.lin(torch.tanh(self.body(batch[0]))), batch[1])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.5, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
