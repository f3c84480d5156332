"""Each example runs as it stands in an empty folder, and its numbers are those of the engine by another path."""

import contextlib
import io
import os
import re
import runpy
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn

from ifloo.attribution import Directions, InfluenceEngine
from ifloo.curvature import Hessian
from ifloo.data import MNISTDataModule
from ifloo.gradients import sample_gradients
from ifloo.models import LogisticRegression
from ifloo.objective import Objective
from ifloo.refit import NewtonFinish
from ifloo.solvers import CG
from ifloo.store import Manifest, influences, self_influence
from tests.conftest import CHECKOUT, LONG
from tests.scripts.test_original_commands import script

EXAMPLES = CHECKOUT / "scripts" / "examples"


def ran(name: str, folder: Path) -> str:
    """What an example prints, in this process: the imports of a fresh one take longer than most examples."""
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as a user may: Lightning's advice on loaders
        patch.chdir(folder)
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    return out.getvalue()


def started(folder: Path, *words: str) -> str:
    """What a fresh Python prints, as a user starts it."""
    env = {**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *words]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=LONG, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ["own_module", "callback", "plain", "predict"])
def test_an_example_is_short(name):
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) < 80


@pytest.fixture(scope="module")
def digits() -> MNISTDataModule:
    data = MNISTDataModule(source="embedded", train_limit=500)
    data.setup()
    return data


@pytest.fixture(scope="module")
def engine(digits) -> InfluenceEngine:
    """Of the model of two examples, whose minimum does not depend on the start; by products with the whole Hessian."""
    model = LogisticRegression(l2_reg=0.05)
    settings = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    L.Trainer(max_epochs=1, callbacks=[NewtonFinish()], enable_model_summary=False, **settings).fit(model, digits)
    objective = Objective.of(model, digits.train_dataloader())
    theta = objective.losses.theta()
    return InfluenceEngine(objective, theta, Hessian(objective, theta), CG(rtol=1e-11))


def test_own_module(tmp_path, digits, engine):
    said = ran("own_module", tmp_path)
    with np.load(tmp_path / "scores_test_8.npz") as file:
        found, ids = file["scores"], file["train_ids"]
    expected = engine.scores(digits.test_batch([8]))
    np.testing.assert_array_equal(ids, expected.train_ids)
    value = expected.value[0].numpy()
    # Both fits end at |grad J| <= 1e-10, both solves at 1e-10.
    np.testing.assert_allclose(found, value, rtol=0, atol=1e-8 * abs(value).max())
    told = [(int(i), float(x)) for i, x in re.findall(r"^ +(\d+) \(a \d\): (\S+) nats$", said, re.MULTILINE)]
    harmful = np.argsort(-value)[:5]
    assert [i for i, _ in told] == harmful.tolist()
    np.testing.assert_allclose([x for _, x in told], value.mean() - value[harmful], rtol=0, atol=5.1e-5)  # 4 digits


def test_predict(tmp_path, digits, engine):
    said = ran("predict", tmp_path)
    found = np.load(tmp_path / "scores.npy")
    directions: Directions = engine.directions(digits.test_batch([0, 8]))
    gradients = sample_gradients(engine.objective.losses, engine.theta, digits.test_batch(range(100, 200)))
    expected = (-directions.value @ gradients.T / 500).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-8 * abs(expected).max())
    best = [int(i) for i in re.findall(r"adding test image (\d+) ", said)]
    assert best == (100 + expected.argmin(1)).tolist()


class Net(nn.Module):
    """That of the example, to read its checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 8, 5, stride=2), nn.GELU(), nn.Conv2d(8, 16, 5, stride=2), nn.GELU(), nn.Flatten()
        )
        self.head = nn.Linear(16 * 4 * 4, 10)


def head_scores(net: Net, x, y, tests, labels, damping: float) -> tuple[np.ndarray, np.ndarray]:
    """Through the last layer in textbook form, dense, float64: H = (1/n) Σ (diag p − p pᵀ) ⊗ z zᵀ + δI."""

    def parts(x, y):
        z = torch.cat([net.features(x), torch.ones(len(x), 1, dtype=x.dtype)], 1)
        p = net.head(z[:, :-1]).softmax(1)
        return z, p, p - nn.functional.one_hot(y, 10)

    with torch.no_grad():
        z, p, residual = parts(x, y)
        S = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
        H = torch.einsum("icd,ij,ik->cjdk", S, z, z).reshape(2570, 2570) / len(x)
        H.diagonal().add_(damping)
        G = torch.einsum("ic,ij->icj", residual, z).flatten(1)
        z_t, _, residual_t = parts(tests, labels)
        g = torch.einsum("ic,ij->icj", residual_t, z_t).flatten(1)
        solved = torch.linalg.solve(H, G.T)
        return (-g @ solved / len(x)).numpy(), ((G.T * solved).sum(0) / len(x)).numpy()


def test_the_cost_of_the_callback_is_measured():
    """What it comes to is for a quiet machine to say; here that each kind of epoch gets its turns."""
    row = script("bench.callback").measured(3, n=100)
    assert row["epochs_of_each"] == 3
    assert all(0 < row[f"seconds_{kind}"] < 60 for kind in ("without", "with", "empty"))
    assert abs(row["share"]) < 10


@pytest.mark.slow
def test_callback(tmp_path):
    text = (EXAMPLES / "callback.py").read_text()
    assert len(re.findall(r"# \+$", text, re.MULTILINE)) <= 5
    said = ran("callback", tmp_path)
    (run,) = (tmp_path / "lightning_logs").iterdir()
    assert len(list(run.glob("events.out.tfevents.*"))) == 1
    folder = run / "influence"
    assert sorted(Manifest.at(folder / "manifest.json").sections()) == ["epoch_002", "epoch_004", "run"]
    (checkpoint,) = (run / "checkpoints").iterdir()
    net = Net()
    net.load_state_dict(torch.load(checkpoint, weights_only=True)["state_dict"])
    data = MNISTDataModule(source="embedded", train_limit=500, test_limit=20)
    data.setup()
    (x, y), (tests, labels) = ((part.x.view(-1, 1, 28, 28), part.labels) for part in (data.train_set, data.test_set))
    expected, own = head_scores(net.double(), x, y, tests[:3], labels[:3], damping=1e-3)
    for t in range(3):
        found = influences.load(folder / "epoch_004" / f"influences_test_{t}.npz")
        np.testing.assert_array_equal(found.train_ids, np.arange(500))
        # In 32 bits the solve ends at a relative residual of 1e-5; of the largest score 3e-6 to 3e-5 were seen.
        np.testing.assert_allclose(found.scores, expected[t], rtol=0, atol=3e-4 * abs(expected[t]).max())
        assert f"\n{t}     {expected[t].argmin()} " in said
    stored = self_influence.load(folder / "epoch_004" / "self_influence.npz")
    np.testing.assert_allclose(stored.last_layer, own, rtol=0, atol=3e-4 * own.max())


def test_plain(tmp_path):
    """An ordinary fit writes an ordinary checkpoint; the command line scores it by the last layer, exactly."""
    (tmp_path / "plain.py").symlink_to(EXAMPLES / "plain.py")
    started(tmp_path, str(EXAMPLES / "plain.py"))
    words = ["influence", "--model=plain.DigitCNN", "--data=plain.Digits", "--ckpt_path=digits.ckpt"]
    words += ["--adapt.sample_losses=plain.sample_losses", "--attribution.parameters=['head.*']"]
    words += ["--attribution.damping=0.001", "--attribution.dtype=float64", "--trainer.accelerator=cpu"]
    started(tmp_path, "-m", "ifloo", *words)
    page = (CHECKOUT / "docs" / "own_model.md").read_text().replace("\\\n", " ")  # a command goes on after a backslash
    (line,) = re.findall(r"^ifloo doctor .*$", page, re.MULTILINE)
    assert started(tmp_path, "-m", "ifloo", *shlex.split(line)[1:]).startswith(
        "DigitCNN, Digits, checkpoint digits.ckpt\n\nwarning        the checkpoint is not at a minimum: |grad J| = "
    )
    stored = influences.load(tmp_path / "outputs/experiment/influences_test_0.npz")

    plain = script("examples.plain")
    model = plain.DigitCNN().double()
    model.load_state_dict(torch.load(tmp_path / "digits.ckpt", weights_only=True)["state_dict"])
    data = plain.Digits()
    data.setup()
    x, y = (t.double() if t.is_floating_point() else t for t in data.train.tensors)
    with torch.no_grad():
        features = torch.cat([model.features(x), torch.ones(len(x), 1, dtype=x.dtype)], 1)
        p = model(x).softmax(1)
    residuals = p - nn.functional.one_hot(y, 10)
    gradients = (residuals.unsqueeze(2) * features.unsqueeze(1)).flatten(1)
    blocks = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    hessian = torch.einsum("nij,nd,ne->idje", blocks, features, features).reshape(970, 970) / len(x)
    with torch.no_grad():
        test, label = data.test[0][0].double().unsqueeze(0), int(data.test[0][1])
        seen = torch.cat([model.features(test), torch.ones(1, 1, dtype=test.dtype)], 1)
        query = ((model(test).softmax(1) - nn.functional.one_hot(torch.tensor([label]), 10)).T @ seen).flatten()
    exact = -torch.linalg.solve(hessian + 1e-3 * torch.eye(970, dtype=x.dtype), query) @ gradients.T / len(x)
    # Stored in 32 bits.
    np.testing.assert_allclose(stored.scores, exact.numpy(), rtol=1e-6, atol=1e-6 * float(exact.abs().max()))
