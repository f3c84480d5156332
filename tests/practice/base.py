"""What the projects of these tests have in common, and how they are trained and scored.

Every project knows nothing of ifloo. Truth is plain autograd in float64 at the weights that the fit ended with.
"""

import logging
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ifloo.store import influences
from tests.cli.running import Outcome, ifloo
from tests.gallery.dense import Dense, off, singles

D = torch.float64
IN_MEMORY, IN_FILES = 1e-9, 1e-7  # errors relative to the largest score; files hold 32 bits
QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def rows(n: int, seed: int, d: int = 4) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=draw, dtype=D)
    return x, (x[:, :3] + 0.7 * torch.randn(n, 3, generator=draw, dtype=D)).argmax(1)


class Rows(L.LightningDataModule):
    """120 training and 9 test rows of four numbers, three classes."""

    def train_dataloader(self) -> Any:
        return DataLoader(TensorDataset(*rows(120, 0)), batch_size=120, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(TensorDataset(*rows(9, 1)), batch_size=9)


def minimiser(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.LBFGS(
        parameters, max_iter=500, line_search_fn="strong_wolfe", tolerance_grad=1e-12, tolerance_change=1e-16
    )


class Softmax(L.LightningModule):
    """Softmax regression, trained to a minimum."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 3, dtype=D)

    def l2(self) -> Tensor:
        return 0.01 * torch.stack([p.square().sum() for p in self.parameters()]).sum()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return F.cross_entropy(self.lin(batch[0]), batch[1]) + self.l2()

    def configure_optimizers(self) -> Any:
        return minimiser(self.parameters())


def trainer(**settings: Any) -> L.Trainer:
    return L.Trainer(**{"max_epochs": 3, **QUIET, **settings})


@contextmanager
def logged() -> Generator[list[str], None, None]:
    """Collects what ifloo logs, which a shell would show: pytest keeps it from the error stream."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("ifloo").addHandler(handler)
    try:
        yield messages
    finally:
        logging.getLogger("ifloo").removeHandler(handler)


@dataclass(frozen=True)
class Project:
    """A trained project: its module, its data, its Trainer, and the folder with its checkpoint."""

    folder: Path
    model: Any
    data: Any
    trainer: L.Trainer

    @classmethod
    def trained(cls, folder: Path, net: type, data: type = Rows, **settings: Any) -> "Project":
        """Trains the classes as their author does and saves `c.ckpt`."""
        L.seed_everything(0)
        fit, model, datamodule = trainer(default_root_dir=folder, **settings), net(), data()
        fit.fit(model, datamodule=datamodule)
        fit.save_checkpoint(folder / "c.ckpt")
        return cls(folder, model, datamodule, fit)

    def run(self, command: str, *flags: str) -> Outcome:
        """Runs a command on the checkpoint, in the folder of the project."""
        named = [f"--{part}={type(own).__module__}.{type(own).__qualname__}" for part, own in self._parts()]
        with logged() as messages:
            done = ifloo(self.folder, command, *named, "--ckpt_path=c.ckpt", "--trainer.accelerator=cpu", *flags)
        return Outcome(done.code, done.out, "\n".join([*messages, done.err]))

    def influence(self, *flags: str) -> Outcome:
        return self.run("influence", "--attribution.test_ids=[0]", *flags)

    def scores(self, outcome: Outcome) -> Tensor:
        """Returns the scores that a command wrote for test 0, `[1, n]`."""
        assert outcome.code == 0, outcome.err
        stored = influences.load(self.folder / "outputs/experiment/influences_test_0.npz")
        return torch.from_numpy(stored.scores).double()[None]

    def dense(self, **settings: Any) -> Dense:
        return Dense(self.model, singles(self.data.train_dataloader()), **settings)

    def tests(self, *ids: int) -> list[Any]:
        every = singles(self.data.val_dataloader())
        return [every[t] for t in ids or (0,)]

    def truth(self, damping: float = 0.0, **settings: Any) -> Tensor:
        """Returns the true scores for test 0, `[1, n]`."""
        return self.dense(**settings).scores(self.tests(0), damping)

    def assert_right(self, outcome: Outcome, damping: float = 0.0, **settings: Any) -> None:
        """Checks the scores that a command wrote against the truth."""
        error = off(self.scores(outcome), self.truth(damping, **settings))
        assert error <= IN_FILES, f"off by {error:.1e} of the largest score"

    def _parts(self) -> list[tuple[str, Any]]:
        return [("model", self.model), ("data", self.data)]
