"""Scores are of the weights that the fit ends with, bit by bit, whatever else replaces them and in whatever order."""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, StochasticWeightAveraging
from torch import nn
from torch.utils.data import DataLoader

from ifloo.attribution import GradientDot, InfluenceEngine
from ifloo.curvature import Damped, Hessian
from ifloo.errors import InputError
from ifloo.models import Adapted
from ifloo.objective import Objective
from ifloo.solvers import CG
from ifloo.stages import InfluenceCallback
from ifloo.store import Manifest, influences, sha256_of_tensors
from tests.stages.callback.fits import EPOCHS, FEATURES, N, Stated, fitted, loader, samples

QUERIES = samples(2, seed=1)[:]


class Net(L.LightningModule):
    """A linear classifier trained by large steps, so that averaged weights are far from the raw ones."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lin = nn.Linear(FEATURES, 3, dtype=torch.float64)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.lin(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("score", float(self.current_epoch))  # the first epoch is the best where the mode is min

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


class Shrinking(L.Callback):
    """Replaces the weights in one hook of the end of a fit."""

    def __init__(self, hook: str) -> None:
        setattr(self, hook, self.shrink)

    def shrink(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str = "fit") -> None:
        with torch.no_grad():
            for p in pl_module.parameters():
                p.mul_(0.5)


def ema() -> L.Callback:
    return EMAWeightAveraging(decay=0.9)


def swa() -> L.Callback:
    return StochasticWeightAveraging(swa_lrs=0.5, swa_epoch_start=1)


OTHERS = {
    "ema": ema,
    "swa": swa,
    "on_train_end": lambda: Shrinking("on_train_end"),
    "on_fit_end": lambda: Shrinking("on_fit_end"),
    "teardown": lambda: Shrinking("teardown"),
}


def gradient_dots(module: L.LightningModule, data: DataLoader) -> np.ndarray:
    """−(1/n) ∇L_t·∇ℓ_i by plain autograd, one sample at a time."""

    def gradient(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        loss = module.training_step((x[None], y[None]), 0)
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(module.parameters()))])

    G, g = (
        torch.stack([gradient(x, y) for x, y in zip(*set_[:], strict=True)]) for set_ in (data.dataset, samples(2, 1))
    )
    return (-g @ G.T / len(G)).numpy()


def stored(folder: Path, name: str = "epoch_003") -> np.ndarray:
    return np.stack([influences.load(folder / "influence" / name / f"influences_test_{t}.npz").scores for t in (0, 1)])


def close(found: np.ndarray, expected: np.ndarray) -> bool:
    return bool(np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max())  # files are of 32 bits


@pytest.mark.filterwarnings("ignore:Swapping scheduler")
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("name", OTHERS)
def test_scored_weights_are_those_of_the_module_after_the_fit(tmp_path, name, first):
    module, seen = Net(), {}

    class Before(L.Callback):
        def on_train_end(self, trainer, pl_module):
            seen.update({n: x.clone() for n, x in pl_module.state_dict().items()})

    callback = InfluenceCallback(QUERIES, method=GradientDot())
    pair = [callback, OTHERS[name]()] if first else [OTHERS[name](), callback]
    fitted(module, loader(), [Before(), *pair], tmp_path)
    section = Manifest.at(tmp_path / "influence" / "manifest.json").sections()["epoch_003"]
    assert section["compared"]["weights"] == sha256_of_tensors(module.state_dict())
    assert section["recorded"]["scored"] == "weights that the fit ends with"
    assert close(stored(tmp_path), gradient_dots(module, loader()))
    raw = Net()
    raw.load_state_dict(seen)
    assert not close(stored(tmp_path), gradient_dots(raw, loader()))


def test_a_hook_of_the_module_that_changes_the_weights_last_is_followed(tmp_path, caplog, capsys):
    class Rounded(Net):
        def on_fit_end(self):  # Lightning calls it after the hooks of all callbacks
            self.lin.weight.data.mul_(0.25)

    module = Rounded()
    fitted(module, loader(), [InfluenceCallback(QUERIES, method=GradientDot())], tmp_path)
    assert close(stored(tmp_path), gradient_dots(module, loader()))
    assert "The weights changed after on_fit_end; they are scored again." in caplog.messages
    assert capsys.readouterr().out.count("Influence after epoch 3") == 2


def test_scores_of_epochs_are_those_of_the_raw_weights_and_labelled_so(tmp_path, capsys):
    raw = []

    class Raw(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            raw.append({n: x.clone() for n, x in pl_module.state_dict().items()})

    module = Net()
    callback = InfluenceCallback(QUERIES, method=GradientDot(), every_n_epochs=1)
    fitted(module, loader(), [callback, Raw(), ema()], tmp_path)
    sections = Manifest.at(tmp_path / "influence" / "manifest.json").sections()
    labels = [sections[f"epoch_00{e}"]["recorded"]["scored"] for e in (1, 2, 3)]
    assert labels == 2 * ["raw weights at the end of an epoch"] + ["weights that the fit ends with"]
    for e, state in enumerate(raw[:2], 1):
        other = Net()
        other.load_state_dict(state)
        assert close(stored(tmp_path, f"epoch_00{e}"), gradient_dots(other, loader()))
    assert close(stored(tmp_path), gradient_dots(module, loader()))
    assert capsys.readouterr().out.startswith("Influence after epoch 3: gradient_dot (*)")


def test_the_last_epoch_is_scored_once_where_nothing_replaces_its_weights(tmp_path):
    calls = []

    class Counted(GradientDot):
        def scores(self, trained, queries, tick=None):
            calls.append(trained.objective.n)
            return super().scores(trained, queries)

    fitted(Net(), loader(), [InfluenceCallback(QUERIES, method=Counted(), every_n_epochs=1)], tmp_path)
    assert calls == [32, N, N, N]  # the trial, and each epoch
    sections = Manifest.at(tmp_path / "influence" / "manifest.json").sections()
    assert sections["epoch_003"]["recorded"]["scored"] == "weights that the fit ends with"


def with_checkpoints(folder: Path, module: L.LightningModule, callback: InfluenceCallback, *more: L.Callback) -> Any:
    best = ModelCheckpoint(folder / "kept", monitor="score", mode="min")
    validation = DataLoader(samples(4, seed=2), batch_size=4)
    trainer = L.Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        callbacks=[callback, best, *more],
        max_epochs=EPOCHS,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    trainer.fit(module, loader(), validation)
    return best


def test_another_best_checkpoint_is_one_line(tmp_path, caplog):
    module = Net()
    best = with_checkpoints(tmp_path, module, InfluenceCallback(QUERIES, method=GradientDot()))
    assert [r.getMessage() for r in caplog.records if r.name.startswith("ifloo") and r.levelname == "WARNING"] == [
        f"The last weights are scored; the best checkpoint {best.best_model_path} (epoch 1, step 5) has others. "
        "InfluenceCallback(weights='best') scores it."
    ]
    assert close(stored(tmp_path), gradient_dots(module, loader()))


def test_the_best_checkpoint_is_scored_where_it_is_chosen(tmp_path, caplog, capsys):
    module = Net()
    callback = InfluenceCallback(QUERIES, method=GradientDot(), weights="best", every_n_epochs=2)
    best = with_checkpoints(tmp_path, module, callback)
    last = gradient_dots(module, loader())
    sections = Manifest.at(tmp_path / "influence" / "manifest.json").sections()
    assert sorted(sections) == ["best", "epoch_002", "run"]
    name = Path(best.best_model_path).name
    recorded = sections["best"]["recorded"]
    assert (recorded["scored"], recorded["epoch"], recorded["global_step"]) == (f"best checkpoint {name}", 1, 5)
    module.load_state_dict(torch.load(best.best_model_path, weights_only=True)["state_dict"])
    assert sections["best"]["compared"]["weights"] == sha256_of_tensors(module.state_dict())
    assert close(stored(tmp_path, "best"), gradient_dots(module, loader()))
    assert not close(stored(tmp_path, "best"), last)
    assert not [text for text in caplog.messages if "has others" in text]
    assert capsys.readouterr().out.startswith(f"Influence of the best checkpoint ({name}, epoch 1, step 5): gradient")


def test_the_best_checkpoint_of_averaged_weights_is_the_averaged_one(tmp_path):
    module = Net()
    best = with_checkpoints(tmp_path, module, InfluenceCallback(QUERIES, method=GradientDot(), weights="best"), ema())
    module.load_state_dict(torch.load(best.best_model_path, weights_only=True)["state_dict"])
    assert close(stored(tmp_path, "best"), gradient_dots(module, loader()))


def test_the_modules_own_hook_reads_the_best_checkpoint(tmp_path):
    class Scaled(Net):
        def __init__(self) -> None:
            super().__init__()
            self.scale = 1.0

        def on_train_epoch_end(self):
            self.scale += 1.0

        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self.lin(batch[0]) / self.scale, batch[1])

        def on_save_checkpoint(self, checkpoint):
            checkpoint["scale"] = self.scale

        def on_load_checkpoint(self, checkpoint):
            self.scale = checkpoint["scale"]

    module = Scaled()
    best = with_checkpoints(tmp_path, module, InfluenceCallback(QUERIES, method=GradientDot(), weights="best"))
    content = torch.load(best.best_model_path, weights_only=True)
    assert (content["scale"], module.scale) != (module.scale, content["scale"])
    module.load_state_dict(content["state_dict"])
    module.scale = content["scale"]
    assert close(stored(tmp_path, "best"), gradient_dots(module, loader()))


def test_best_weights_need_checkpoints(tmp_path, caplog):
    message = (
        "weights='best' scores the best checkpoint, and this fit has no ModelCheckpoint.\n"
        "  Add ModelCheckpoint(monitor=...) to the callbacks, or leave weights out."
    )
    with pytest.raises(InputError) as said:
        fitted(Stated(), loader(), [InfluenceCallback(QUERIES, weights="best", strict=True)], tmp_path)
    assert str(said.value) == message
    fitted(Stated(), loader(), [InfluenceCallback(QUERIES, weights="best")], tmp_path)
    assert f"InfluenceCallback is off for this fit: {' '.join(message.split())}" in caplog.messages


class Plainly:
    """A value that is not plain."""


@pytest.mark.parametrize("weights", ["last", "best"])
def test_a_best_checkpoint_with_objects_is_not_executed(tmp_path, caplog, weights):
    class WithObject(Net):
        def on_save_checkpoint(self, checkpoint):
            checkpoint["mine"] = Plainly()

    module = WithObject()
    best = with_checkpoints(tmp_path, module, InfluenceCallback(QUERIES, method=GradientDot(), weights=weights))
    (text,) = [r.getMessage() for r in caplog.records if r.name.startswith("ifloo") and r.levelname == "WARNING"]
    cannot = f"The best checkpoint {best.best_model_path} cannot be read as plain values"
    if weights == "last":
        assert text.startswith(
            f"The last weights are scored; whether the best checkpoint has others is unknown. {cannot}"
        )
        assert close(stored(tmp_path), gradient_dots(module, loader()))
    else:
        assert text.startswith(f"No influence scores of the best checkpoint; the fit is untouched. WorkError: {cannot}")
        assert not (tmp_path / "influence").exists()


def test_the_last_layer_of_averaged_weights(tmp_path):
    module = Net()
    fitted(module, loader(), [InfluenceCallback(QUERIES, damping=0.01), ema()], tmp_path)
    objective = Objective.of(Adapted(module), loader())
    theta = objective.losses.theta()
    expected = InfluenceEngine(objective, theta, Damped(Hessian(objective, theta), 0.01), CG(rtol=1e-12)).scores(
        QUERIES
    )
    assert close(stored(tmp_path), expected.value.numpy())
