"""What makes no sense is said before the first step, and ends a strict fit only; scores of fits are not mixed."""

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, WeightedRandomSampler

from ifloo.attribution import GradientDot, InfluenceEngine, InfluenceFunction, TracIn
from ifloo.curvature import Damped, LinearHead
from ifloo.errors import InputError
from ifloo.objective import Identified, Objective
from ifloo.solvers import Cholesky, SolveError
from ifloo.stages import InfluenceCallback
from ifloo.store import Manifest, influences
from tests.conftest import CHECKOUT
from tests.stages.callback.fits import EPOCHS, N, Plain, Stated, fitted, loader, losses_of, samples

QUERIES = samples(2, seed=1)[:]


class Headless(Plain):
    """Ends in a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Unflatten(1, (1, 6))), nn.Sequential(nn.Conv1d(1, 3, 6), nn.Flatten())
        self.double()


LAST = "head.0 (Conv1d)"


class Locked(Stated):
    """Holds what cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


class NoLength(IterableDataset):
    def __iter__(self):
        return iter(samples(N))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every_n_epochs": 0}, "InfluenceCallback: every_n_epochs must be >= 1, got 0."),
        ({"num_queries": 0}, "InfluenceCallback: num_queries must be >= 1, got 0."),
        ({"batch_size": -1}, "InfluenceCallback: batch_size must be >= 1, got -1."),
        ({"damping": -0.5}, "InfluenceCallback: damping must be a finite number >= 0, got -0.5."),
        ({"l2": float("nan")}, "InfluenceCallback: l2 must be a finite number >= 0, got nan."),
        (
            {"method": GradientDot},
            "InfluenceCallback: method must be a Method of ifloo.attribution, such as GradientDot() (with its "
            "parentheses); got <class 'ifloo.attribution.gradient_dot.GradientDot'>.",
        ),
        ({"draws": 0}, "InfluenceCallback: draws must be >= 1, got 0."),
        ({"weights": "first"}, "InfluenceCallback: weights must be 'last' or 'best', got 'first'."),
        (
            {"method": TracIn()},
            "InfluenceCallback: method tracin needs the recorded training run, which is whole after the fit.\n"
            "  Leave method out (the last layer), give one that needs no run, such as GradientDot(), or give a "
            "InfluenceFunction its damping.",
        ),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(InputError) as said:
        InfluenceCallback(QUERIES, **settings)
    assert str(said.value) == message


def test_a_curvature_route_with_its_damping_needs_no_run():
    InfluenceCallback(QUERIES, method=InfluenceFunction("all", damping=0.1))


def warnings_of(caplog: Any) -> list[str]:
    found = (r for r in caplog.records if r.name.startswith("ifloo") and r.levelname == "WARNING")
    return [r.getMessage() for r in found]


def test_without_a_last_layer_scores_are_gradient_dot_products(tmp_path, caplog):
    L.seed_everything(0, verbose=False)
    fitted(Headless(), loader(), [InfluenceCallback(QUERIES)], tmp_path / "default")
    assert warnings_of(caplog) == [
        "Influence is scored by gradient dot products of all parameters, not through the last layer: "
        "No trainable linear map (nn.Linear, convolution of one pixel) gives the logits; last before the loss: "
        f"{LAST}."
    ]
    L.seed_everything(0, verbose=False)
    fitted(Headless(), loader(), [InfluenceCallback(QUERIES, method=GradientDot())], tmp_path / "named")
    one, other = (
        influences.load(tmp_path / name / "influence" / "epoch_003" / "influences_test_1.npz")
        for name in ("default", "named")
    )
    assert one.method == other.method == "gradient_dot"
    assert np.array_equal(one.scores, other.scores)


def test_a_last_layer_too_large_to_keep_is_replaced_by_gradient_dot_products(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("ifloo.stages.callback.scorer.HEAD_BYTES", 100)
    fitted(Stated(), loader(), [InfluenceCallback(QUERIES)], tmp_path)
    (text,) = warnings_of(caplog)
    assert text.startswith("Influence is scored by gradient dot products of all parameters, not through the last layer")
    assert influences.load(tmp_path / "influence" / "epoch_003" / "influences_test_1.npz").method == "gradient_dot"


def test_a_missing_last_layer_leaves_self_influence_out(tmp_path, caplog):
    asked = InfluenceCallback(QUERIES, method=GradientDot(), self_influence=True)
    with caplog.at_level("INFO", "ifloo"):
        fitted(Headless(), loader(), [asked], tmp_path, max_epochs=1)
    named = [text for text in caplog.messages if "self-influence" in text]
    assert set(named) == {
        "self-influence through the last layer: none. No trainable linear map (nn.Linear, convolution of one pixel) "
        f"gives the logits; last before the loss: {LAST}."
    }


def of_another_module(model, batch):
    return model.tail(batch)


FITS: dict[str, tuple[Any, Any, Any, str]] = {
    "two contracts": (
        Stated,
        loader,
        {"sample_losses": losses_of},
        "Stated states its own sample_losses and penalty, and InfluenceCallback was given others.\n"
        "  Leave sample_losses and l2 out.",
    ),
    "reduced losses": (
        Plain,
        loader,
        {"sample_losses": lambda model, batch: losses_of(model, batch).mean()},
        "sample_losses must return one loss a sample, shape [1] for a batch of one; got [].\n"
        "  Leave out the reduction (reduction='none') and sum over everything but the first dimension.",
    ),
    "a function that fails": (
        Plain,
        loader,
        {"sample_losses": of_another_module},
        "sample_losses given for Plain failed: AttributeError: 'Plain' object has no attribute 'tail' "
        f"(tests/stages/callback/{Path(__file__).name}:{of_another_module.__code__.co_firstlineno + 1})",
    ),
    "no such parameters": (
        Stated,
        loader,
        {"parameters": "haed.*"},
        "No trainable parameter matches ['haed.*'].\n  The nearest of the 4 names: ['head.bias', 'head.weight'].",
    ),
    "an id twice": (
        Stated,
        loader,
        {"queries": Identified(QUERIES, torch.tensor([4, 4]))},
        "InfluenceCallback: queries hold an id twice: [4, 4].\n  Each has files of its own.",
    ),
    "no tensor": (
        Stated,
        loader,
        {"queries": ["a", "b"]},
        "A batch must hold at least one tensor [b, ...]; got list without any.",
    ),
    "two loaders": (
        Stated,
        lambda: [loader(), loader()],
        {},
        "InfluenceCallback scores the data set behind one training DataLoader; this fit has a list.\n"
        "  Concatenate the data sets (torch.utils.data.ConcatDataset), or score after the fit.",
    ),
    "no length": (
        Stated,
        lambda: DataLoader(NoLength(), batch_size=8),
        {},
        "Attribution needs a map-style dataset (with __len__ and __getitem__); got NoLength, an IterableDataset.\n"
        "  Give a dataset whose __getitem__ returns the sample at a position.",
    ),
    "a part of the data": (
        Stated,
        lambda: loader(shuffle=False, sampler=WeightedRandomSampler([1.0] * N, N)),
        {},
        "The training loader draws with WeightedRandomSampler; J is the mean over every sample once.\n"
        "  The fit has another objective, in which some samples count more than others. Use shuffle=True or False; "
        "for a part of the data wrap the dataset (torch.utils.data.Subset).",
    ),
    "no copy": (
        Locked,
        loader,
        {},
        "Locked cannot be copied (copy.deepcopy): TypeError: cannot pickle '_thread.lock' object\n"
        "  Influence is scored on a copy, so that the fit does not change. Keep objects that cannot be copied "
        "(files, locks) out of the module.",
    ),
}


@pytest.mark.parametrize("name", FITS)
def test_what_does_not_go_together_ends_a_strict_fit_before_the_first_step(tmp_path, name):
    kind, data, settings, message = FITS[name]
    module = kind()
    before = {n: x.clone() for n, x in module.state_dict().items()}
    callback = InfluenceCallback(**{"queries": QUERIES, **settings}, strict=True)
    with pytest.raises(InputError) as said:
        fitted(module, data(), [callback], tmp_path)
    assert str(said.value) == message
    assert all(torch.equal(x, before[n]) for n, x in module.state_dict().items())
    assert not (tmp_path / "influence").exists()


class Forgiving(Plain):
    """Trains on batches of several loaders."""

    def training_step(self, batch, batch_idx):
        return super().training_step(batch[0] if isinstance(batch[0], list) else batch, batch_idx)


@pytest.mark.parametrize("name", FITS)
def test_what_does_not_go_together_is_one_warning_and_the_fit_goes_on(tmp_path, name, caplog, capsys):
    kind, data, settings, message = FITS[name]
    kind = Forgiving if name == "two loaders" else kind
    callback = InfluenceCallback(**{"queries": QUERIES, **settings}, every_n_epochs=1)
    assert fitted(kind(), data(), [callback], tmp_path).current_epoch == EPOCHS
    assert warnings_of(caplog) == [f"InfluenceCallback is off for this fit: {' '.join(message.split())}"]
    assert not (tmp_path / "influence").exists()
    assert capsys.readouterr().out == ""


THIS_FILE = Path(__file__).relative_to(Path.cwd())


class Broken(TensorDataset):
    """Fails with an error that is none of ifloo when its first sample is read."""

    def __getitem__(self, index):
        raise KeyError("a label that is missing")


def test_an_error_of_the_users_code_is_one_warning(tmp_path, caplog):
    fitted(Stated(), loader(), [InfluenceCallback(Broken(*QUERIES))], tmp_path)
    line = Broken.__getitem__.__code__.co_firstlineno + 1
    assert warnings_of(caplog) == [
        f"InfluenceCallback is off for this fit: KeyError: 'a label that is missing' ({THIS_FILE}:{line})"
    ]


def test_an_error_of_the_users_code_ends_a_strict_fit_as_it_is(tmp_path):
    with pytest.raises(KeyError, match=r"^'a label that is missing'$") as raised:
        fitted(Stated(), loader(), [InfluenceCallback(Broken(*QUERIES), strict=True)], tmp_path)
    assert "in __getitem__" in str(raised.value.__cause__)


def test_a_later_failure_ends_a_strict_fit(tmp_path):
    class Failing(GradientDot):
        def scores(self, trained, queries, tick=None):
            if trained.objective.n == N:  # not in the trial before the fit
                raise SolveError("CG met non-positive curvature.")
            return super().scores(trained, queries)

    with pytest.raises(SolveError, match=r"^CG met non-positive curvature\.$"):
        fitted(Stated(), loader(), [InfluenceCallback(QUERIES, method=Failing(), strict=True)], tmp_path)


def epochs(folder: Path) -> list[str]:
    return sorted(Manifest.at(folder / "influence" / "manifest.json").sections())


def test_an_earlier_fits_scores_are_kept_or_replaced(tmp_path):
    folder = tmp_path / "influence"
    fitted(Stated(), loader(), [InfluenceCallback(QUERIES, every_n_epochs=1)], tmp_path)
    assert epochs(tmp_path) == ["epoch_001", "epoch_002", "epoch_003", "run"]
    before = influences.load(folder / "epoch_001" / "influences_test_0.npz").scores
    with pytest.raises(InputError) as said:
        fitted(Stated(), loader(), [InfluenceCallback(QUERIES, strict=True)], tmp_path)
    assert str(said.value) == (
        f"{folder} holds the influence scores of an earlier fit (epoch_001, epoch_002, epoch_003).\n"
        "  Give InfluenceCallback another output_dir to keep them, or overwrite=True to replace them."
    )
    np.testing.assert_array_equal(influences.load(folder / "epoch_001" / "influences_test_0.npz").scores, before)
    (folder / "epoch_001" / "notes.txt").write_text("mine")
    fitted(Stated(), loader(), [InfluenceCallback(QUERIES, overwrite=True)], tmp_path, max_epochs=2)
    assert epochs(tmp_path) == ["epoch_002", "run"]
    assert sorted(str(p.relative_to(folder)) for p in folder.rglob("*.*")) == [
        "epoch_001/notes.txt",
        "epoch_002/influences_test_0.npz",
        "epoch_002/influences_test_1.npz",
        "manifest.json",
    ]
    fitted(Stated(), loader(), [InfluenceCallback(QUERIES, output_dir=tmp_path / "other")], tmp_path, max_epochs=1)
    assert (tmp_path / "other" / "epoch_001" / "influences_test_0.npz").exists()


def test_a_fit_that_goes_on_adds_to_its_own(tmp_path):
    trainer = fitted(Stated(), loader(), [InfluenceCallback(QUERIES)], tmp_path, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    more = {"max_epochs": 2, "ckpt": tmp_path / "one.ckpt"}
    with pytest.raises(InputError) as said:
        fitted(Stated(), loader(), [InfluenceCallback(QUERIES, damping=0.5, strict=True)], tmp_path, **more)
    assert str(said.value) == (
        f"{tmp_path / 'influence' / 'manifest.json'}: the run results there were made with other settings.\n"
        "  damping: stored 0.001, asked 0.5\n"
        "  Results of different settings are never mixed. Give another output_dir to keep both, or overwrite=True to "
        "replace the stored ones."
    )
    fitted(Stated(), loader(), [InfluenceCallback(QUERIES, overwrite=True)], tmp_path, **more)
    assert epochs(tmp_path) == ["epoch_001", "epoch_002", "run"]  # of the same settings: nothing to replace
    fitted(Stated(), loader(), [InfluenceCallback(QUERIES, damping=0.5, overwrite=True)], tmp_path, **more)
    assert epochs(tmp_path) == ["epoch_002", "run"]


def test_hooks_on_batches_are_named(tmp_path, caplog):
    class Hooked(Stated):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            return batch

    fitted(Hooked(), loader(), [InfluenceCallback(QUERIES)], tmp_path, max_epochs=1)
    said = [r.getMessage() for r in caplog.records if r.name == "ifloo.stages.callback.training_data"]
    assert said == [
        "Influence is scored on batches as the training loader makes them: without on_after_batch_transfer of the "
        "module."
    ]


@pytest.mark.slow
def test_under_ddp_the_first_process_scores_and_weights_stay_the_same(tmp_path):
    program = Path(__file__).with_name("shared_fit.py")
    env = {**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
    for how in ("with", "without"):
        command = [sys.executable, str(program), "2", how, str(tmp_path)]
        ran = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.count("Influence after epoch 3") == (how == "with")
    weights = [torch.load(tmp_path / f"{how}_{rank}.pt") for how in ("with", "without") for rank in (0, 1)]
    for other in weights[1:]:
        assert all(torch.equal(x, other[n]) for n, x in weights[0].items())
    module = Stated()
    module.load_state_dict(weights[0])
    objective = Objective.of(module.eval(), loader(), ["head.*"])
    theta = objective.losses.theta()
    expected = InfluenceEngine(objective, theta, Damped(LinearHead(objective, theta), 1e-3), Cholesky()).scores(QUERIES)
    found = influences.load(tmp_path / "influence" / "epoch_003" / "influences_test_1.npz")
    np.testing.assert_array_equal(found.train_ids, np.arange(N))
    value = expected.value[1].numpy()
    np.testing.assert_allclose(found.scores, value, rtol=0, atol=1e-6 * abs(value).max())
