"""A fit with the callback has the weights, the counters and the end that it has without, however it is run and ends."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    EarlyStopping,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ifloo.stages import InfluenceCallback
from tests.stages.callback.fits import N, samples
from tests.stages.callback.stateful_data import Attributes
from tests.stages.callback.test_data_reads import warnings_of


def in_32_bits(n: int, seed: int) -> TensorDataset:
    x, y = samples(n, seed).tensors
    return TensorDataset(x.float(), y)


QUERIES = in_32_bits(2, 1)


class Net(L.LightningModule):
    """A classifier with dropout, whose training fails at one step."""

    fails_at: int | None = None
    failure: BaseException = RuntimeError("out of luck")

    def __init__(self, lr: float = 0.01, batch_size: int = 8) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.body, self.head = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Dropout(0.3)), nn.Linear(5, 3)

    def loss(self, batch: Any) -> torch.Tensor:
        return nn.functional.cross_entropy(self.head(self.body(batch[0].to(self.dtype))), batch[1])

    def training_step(self, batch, batch_idx):
        if self.global_step == self.fails_at:
            raise self.failure
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        self.log("score", self.loss(batch))

    def train_dataloader(self) -> Any:
        return DataLoader(in_32_bits(N, 0), batch_size=self.hparams.batch_size, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(in_32_bits(9, 2), batch_size=9)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.hparams.lr)


class WithWorkers(Net):
    """Reads by processes that stay."""

    def train_dataloader(self) -> Any:
        class Data(Attributes):
            def __getitem__(self, i: int) -> Any:
                x, y = super().__getitem__(i)
                return x.float(), y

        return DataLoader(Data("numpy"), batch_size=8, shuffle=True, num_workers=2, persistent_workers=True)


class Fails(Net):
    fails_at = 7


class Interrupted(Net):
    fails_at, failure = 7, KeyboardInterrupt()


class Run:
    """A fit and what is left of it."""

    def __init__(
        self,
        folder: Path,
        callbacks: list[L.Callback],
        kind: type[Net] = Net,
        others: Callable[[], list[L.Callback]] = list,
        resumed: bool = False,
        **settings: Any,
    ) -> None:
        L.seed_everything(0, verbose=False)
        self.module, self.error = kind(), "none"
        self.folder = folder
        made = {"max_epochs": 3, "logger": False, "enable_checkpointing": False, **settings}
        try:
            self.trainer = self._trainer(callbacks, others, made)
            self.trainer.fit(self.module)
            if resumed:
                self.trainer.save_checkpoint(folder / "resumed.ckpt")
                self.trainer = self._trainer(callbacks, others, {**made, "max_epochs": 5})
                self.trainer.fit(self.module, ckpt_path=folder / "resumed.ckpt", weights_only=True)
        except BaseException as error:  # also of an interrupt, which Lightning turns into an exit
            self.error = repr(error)

    def _trainer(self, callbacks: list[L.Callback], others: Callable[[], list[L.Callback]], made: Any) -> L.Trainer:
        return L.Trainer(
            accelerator="cpu",
            default_root_dir=self.folder,
            callbacks=[*callbacks, *others()],
            enable_progress_bar=False,
            enable_model_summary=False,
            **made,
        )

    @property
    def left(self) -> tuple[object, ...]:
        """Error, counters, and optimizer."""
        trainer = self.trainer
        lr = [group["lr"] for one in trainer.optimizers for group in one.param_groups]
        return self.error, trainer.current_epoch, trainer.global_step, trainer.should_stop, lr


RUNS: dict[str, dict[str, Any]] = {
    "swa": {"others": lambda: [StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1)]},
    "ema": {"others": lambda: [EMAWeightAveraging(decay=0.9)]},
    "two checkpoints": {
        "others": lambda: [ModelCheckpoint(monitor="score", save_top_k=2)],
        "enable_checkpointing": True,
    },
    "early stopping": {"others": lambda: [EarlyStopping("score", patience=0, mode="max")], "max_epochs": 6},
    "accumulation by epoch": {"others": lambda: [GradientAccumulationScheduler({0: 1, 1: 2})]},
    "steps": {"max_steps": 7, "max_epochs": -1},
    "no validation": {"limit_val_batches": 0},
    "validation within epochs": {"val_check_interval": 2},
    "bf16": {"precision": "bf16-mixed"},
    "fp16 weights": {"precision": "16-true"},
    "bf16 weights": {"precision": "bf16-true"},
    "accumulation": {"accumulate_grad_batches": 3},
    "clipping": {"gradient_clip_val": 0.1},
    "no inference mode": {"inference_mode": False},
    "deterministic": {"deterministic": True},
    "anomalies": {"detect_anomaly": True},
    "workers": {"kind": WithWorkers},
    "resumed": {"resumed": True},
    "learning rate found": {"others": lambda: [LearningRateFinder(num_training_steps=5)]},
    "batch size found": {"others": lambda: [BatchSizeFinder(max_trials=2, init_val=4)]},
}
UNSCORED: dict[str, tuple[dict[str, Any], str]] = {
    "an error": ({"kind": Fails}, "No influence scores of the last weights: the fit ended by RuntimeError."),
    "an interrupt": ({"kind": Interrupted}, "No influence scores of the last weights: the fit ended by KeyboardInt"),
    "no epoch": ({"max_epochs": 0}, "No influence scores: max_epochs, max_steps or max_time ended the fit before"),
    "no time": ({"max_time": "00:00:00:00"}, "No influence scores: max_epochs, max_steps or max_time ended the fit"),
    "a trial": ({"fast_dev_run": True}, "No influence scores of a fast_dev_run, which draws part of the data."),
}
FILTERS = (
    "ignore:.*(does not have many workers|smaller than the logging interval|Swapping scheduler|checkpoint directory)",
    "ignore:.*(You have turned on|Detected call of|exists and is not empty|deterministic|lr_scheduler.step|GradScaler)",
)


def same(a: Run, b: Run) -> bool:
    weights = zip(a.module.state_dict().values(), b.module.state_dict().values(), strict=True)
    return a.left == b.left and all(torch.equal(x, y) for x, y in weights)


@pytest.mark.filterwarnings(*FILTERS)
@pytest.mark.parametrize("name", RUNS)
def test_a_fit_is_bitwise_as_without_the_callback(tmp_path, name, caplog):
    callback = InfluenceCallback(QUERIES, every_n_epochs=1, output_dir=tmp_path / "i")
    run = Run(tmp_path / "with", [callback], **RUNS[name])
    assert run.error == "none"
    assert same(run, Run(tmp_path / "without", [], **RUNS[name]))
    last = max(tmp_path.glob("i/epoch_*/influences_test_1.npz"))
    assert last.parent.name == f"epoch_{run.trainer.current_epoch:03d}"
    assert not [text for text in warnings_of(caplog) if "No influence" in text or "is off" in text]


@pytest.mark.filterwarnings(*FILTERS)
@pytest.mark.parametrize("name", UNSCORED)
def test_a_fit_without_an_end_that_can_be_scored_ends_as_without_the_callback_and_says_so(tmp_path, name, caplog):
    settings, line = UNSCORED[name]
    run = Run(tmp_path / "with", [InfluenceCallback(QUERIES, output_dir=tmp_path / "i")], **settings)
    (said,) = warnings_of(caplog)
    assert said.startswith(line)
    assert same(run, Run(tmp_path / "without", [], **settings))
    assert not list(tmp_path.glob("i/*"))


def test_two_callbacks_score_the_same(tmp_path):
    both = [InfluenceCallback(QUERIES, every_n_epochs=1, output_dir=tmp_path / name) for name in "ab"]
    assert same(Run(tmp_path, both), Run(tmp_path, []))
    for path in tmp_path.glob("a/epoch_*/influences_*.npz"):
        other = tmp_path / "b" / path.relative_to(tmp_path / "a")
        assert path.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("travel", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
@pytest.mark.parametrize("used", [False, True])
def test_a_callback_travels_to_another_process(tmp_path, travel, used):
    callback = InfluenceCallback(QUERIES, output_dir=tmp_path / "i", overwrite=True)
    if used:
        Run(tmp_path, [callback])
    Run(tmp_path, [travel(callback)])
    assert (tmp_path / "i" / "epoch_003" / "influences_test_1.npz").exists()
