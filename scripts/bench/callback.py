"""Cost of InfluenceCallback in epochs in which it does nothing: epochs without and with it alternate in one fit.

Every third epoch has an empty Callback in its place, which measures the cost of Lightning's calls themselves.

python scripts/bench/callback.py [--epochs 200] [--json out/callback.json]
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ifloo.data import MNISTDataModule
from ifloo.stages import InfluenceCallback

TARGET = 0.005  # largest acceptable cost, as a share of an epoch's time


KINDS = ("without", "with", "empty")


class ConvNet(L.LightningModule):
    """A CNN of about 30,000 parameters, so small that any added cost per epoch is visible."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 5, stride=2), nn.GELU(), nn.Conv2d(16, 32, 5, stride=2), nn.GELU(), nn.Flatten()
        )
        self.hidden, self.head = nn.Linear(32 * 4 * 4, 32), nn.Linear(32, 10)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self.head(nn.functional.gelu(self.hidden(self.body(x)))), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Turns(L.Callback):
    """Gives the Trainer no callback, another one or an empty one in turn, epoch by epoch, and times the epochs.

    Attributes:
        seconds: Processor seconds of each epoch by kind; unlike wall time they do not depend on the machine's load.
    """

    def __init__(self, other: L.Callback) -> None:
        self.present: dict[str, list[L.Callback]] = {"without": [], "with": [other], "empty": [L.Callback()]}
        self.seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
        self._begun: tuple[str, float] | None = None

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Ends the time of the last epoch and starts the next, so that all hooks in between are included."""
        now = time.process_time()
        if self._begun is not None:
            kind, begun = self._begun
            self.seconds[kind].append(now - begun)
        kind = KINDS[trainer.current_epoch % len(KINDS)]
        trainer.callbacks = [self, *self.present[kind]]  # type: ignore[attr-defined]
        self._begun = kind, time.process_time()


def measured(epochs: int, n: int = 1000) -> dict[str, float]:
    """Measures median processor seconds per epoch of each kind, and median relative costs against neighbouring epochs.

    Args:
        epochs: Number of epochs of each kind.
        n: Number of training samples, in batches of 50.

    Returns:
        Seconds by kind; `share`, the median of (with − without)/without; `share_empty`, the same of an empty callback;
        `share_se`, the standard error of `share` from the spread of 20 blocks.
    """
    data = MNISTDataModule(source="embedded", train_limit=n, test_limit=4, dtype="float32")
    data.setup()
    train, test = (TensorDataset(s.x.view(-1, 1, 28, 28), s.labels) for s in (data.train_set, data.test_set))
    L.seed_everything(0, verbose=False)
    with tempfile.TemporaryDirectory() as folder:
        other = InfluenceCallback(test, every_n_epochs=10 * epochs, output_dir=folder)
        turns = Turns(other)
        trainer = L.Trainer(
            max_epochs=len(KINDS) * epochs + 1,  # one more: the last epoch is not timed, and runs without the callback
            accelerator="cpu",
            callbacks=[turns, other],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(ConvNet(), DataLoader(train, batch_size=50, shuffle=True))
    seconds = turns.seconds
    shares, empty = (_shares(seconds["without"], seconds[kind]) for kind in ("with", "empty"))
    size = max(1, len(shares) // 20)
    blocks = [statistics.median(shares[i : i + size]) for i in range(0, len(shares) - size + 1, size)]
    return {
        "epochs_of_each": len(shares),
        **{f"seconds_{kind}": statistics.median(seconds[kind]) for kind in KINDS},
        "share": statistics.median(shares),
        "share_se": statistics.stdev(blocks) / len(blocks) ** 0.5 if len(blocks) > 1 else float("nan"),
        "share_empty": statistics.median(empty),
    }


def _shares(without: list[float], others: list[float]) -> list[float]:
    return [b / a - 1 for a, b in zip(without, others, strict=True)]


def main() -> None:
    """Prints one row, and writes it to `--json` if given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=200, help="epochs of each kind")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    row = measured(args.epochs)
    print(
        f"epoch without {1e3 * row['seconds_without']:.2f} ms, with {1e3 * row['seconds_with']:.2f} ms "
        f"({row['epochs_of_each']} of each): {row['share']:+.2%} ± {row['share_se']:.2%} (target < {TARGET:.1%}); "
        f"an empty callback {row['share_empty']:+.2%}"
    )
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(row, indent=1) + "\n")


if __name__ == "__main__":
    main()
