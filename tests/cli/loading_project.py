"""Projects whose modules and data need more of Lightning than a constructor without arguments."""

import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.data import DataLoader, TensorDataset

NAME = __name__
QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def rows(n: int, seed: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=draw, dtype=torch.float64)
    return x, (x[:, :3] + torch.randn(n, 3, generator=draw, dtype=torch.float64)).argmax(1)


class Rows(L.LightningDataModule):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.save_hyperparameters()

    def train_dataloader(self) -> Any:
        return DataLoader(TensorDataset(*rows(self.hparams["count"], 0)), batch_size=self.hparams["count"])

    def val_dataloader(self) -> Any:
        return DataLoader(TensorDataset(*rows(6, 1)), batch_size=6)


class NamedTests(Rows):
    def val_dataloader(self) -> Any:
        return {name: DataLoader(TensorDataset(*rows(6, seed)), batch_size=6) for seed, name in enumerate(("a", "b"))}


class Softmax(L.LightningModule):
    def __init__(self, width: int, classes: int, scale: float = 1.0) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.lin = nn.Linear(width, classes, dtype=torch.float64)

    def penalty(self) -> Tensor:
        return 0.05 * torch.stack([p.square().sum() for p in self.parameters()]).sum()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return cross_entropy(self.hparams["scale"] * self.lin(batch[0]), batch[1]) + self.penalty()

    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(
            self.parameters(), max_iter=300, line_search_fn="strong_wolfe", tolerance_grad=1e-12, tolerance_change=1e-16
        )


class WithData(Softmax):
    """Has its loaders itself."""

    def train_dataloader(self) -> Any:
        return DataLoader(TensorDataset(*rows(40, 0)), batch_size=40)

    def val_dataloader(self) -> Any:
        return DataLoader(TensorDataset(*rows(6, 1)), batch_size=6)


class Standardised(Softmax):
    """Regression on targets that the fit standardises; the checkpoint keeps mean and deviation."""

    def __init__(self) -> None:
        super().__init__(4, 1)
        self.mean, self.deviation = 0.0, 1.0

    def targets(self, x: Tensor) -> Tensor:
        return 300 + 40 * x.sum(1, keepdim=True)

    def on_fit_start(self) -> None:
        x, _ = self.trainer.datamodule.train_dataloader().dataset.tensors  # type: ignore[attr-defined]
        y = self.targets(x)
        self.mean, self.deviation = float(y.mean()), float(y.std())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["scaler"] = [self.mean, self.deviation]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.mean, self.deviation = checkpoint["scaler"]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        y = (self.targets(batch[0]) - self.mean) / self.deviation
        return mse_loss(self.lin(batch[0]), y) + self.penalty()


class Renamed(Softmax):
    """Loads checkpoints whose layer had another name."""

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name.replace("old", "lin"): value for name, value in state.items()}


class MakesLayersAgain(Softmax):
    """Makes a new layer in each call of `setup`, by the width of the data."""

    def __init__(self) -> None:
        super().__init__(1, 1)

    def setup(self, stage: str) -> None:
        x, _ = self.trainer.datamodule.train_dataloader().dataset.tensors  # type: ignore[attr-defined]
        self.lin = nn.Linear(x.shape[1], 3, dtype=torch.float64)


class LazyLayer(Softmax):
    """Has a layer without a width until it has seen a batch or a checkpoint."""

    def __init__(self) -> None:
        super().__init__(1, 1)
        self.lin = nn.LazyLinear(3, dtype=torch.float64)


class NotStrict(Softmax):
    """Leaves its frozen layer out of checkpoints."""

    def __init__(self) -> None:
        super().__init__(4, 3)
        self.strict_loading = False
        self.fixed = nn.Linear(4, 3, dtype=torch.float64).requires_grad_(False)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k.startswith("lin")}


class WithFolder(Softmax):
    """Has arguments that no config can hold."""

    def __init__(self, out: Path, net: nn.Module) -> None:
        super().__init__(4, 3)
        self.save_hyperparameters()
        self.lin, self.out = net, out  # type: ignore[assignment]


def make() -> tuple[L.LightningModule, L.LightningDataModule]:
    return Softmax(4, 3), Rows(40)


def make_alone() -> L.LightningModule:
    return WithData(4, 3)


def make_with_arguments(width: int) -> tuple[L.LightningModule, L.LightningDataModule]:
    return Softmax(width, 3), Rows(40)


def make_nothing() -> None:
    """Forgets its return."""


def fitted(folder: Path, model: L.LightningModule, data: L.LightningDataModule | None = None) -> L.LightningModule:
    """Trains a module as its author does and writes c.ckpt."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Lightning's advice to the author
        trainer = L.Trainer(max_epochs=1, default_root_dir=folder, **QUIET)
        trainer.fit(model, datamodule=data) if data is not None else trainer.fit(model)
    trainer.save_checkpoint(folder / "c.ckpt")
    return model
