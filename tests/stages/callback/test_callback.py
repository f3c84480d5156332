"""Influence in the user's own Trainer: the scores of the engine, and a fit that ends as if nobody had looked."""

import csv
import logging
import random
import signal
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.logger import Logger
from torch.utils.data import DataLoader, TensorDataset

from ifloo.attribution import GradientDot, InfluenceEngine, last_layer_self, loss_ranking
from ifloo.curvature import Damped, Hessian
from ifloo.models import Adapted
from ifloo.objective import Objective
from ifloo.solvers import CG, SolveError
from ifloo.stages import InfluenceCallback
from ifloo.store import Manifest, influences, self_influence
from tests.stages.callback.fits import EPOCHS, Augmented, N, Plain, Stated, fitted, loader, losses_of, samples

QUERIES = samples(2, seed=1)[:]


class Seen(L.Callback):
    """What a fit has become: weights at each epoch's end; at its end all that could have been disturbed."""

    def __init__(self) -> None:
        self.weights: list[dict[str, torch.Tensor]] = []
        self.handlers: list[list[str]] = []

    def on_train_epoch_end(self, trainer, pl_module):
        handler: Any = signal.getsignal(signal.SIGTERM)  # Lightning's, of a list of functions
        self.handlers.append([one.__qualname__ for one in handler.signal_handlers])
        self.weights.append({n: x.clone() for n, x in pl_module.state_dict().items()})

    def on_fit_end(self, trainer, pl_module):
        (optimizer,) = trainer.optimizers
        self.end = {
            "weights": self.weights,
            "optimizer": optimizer.state_dict(),
            "torch": torch.get_rng_state(),
            "numpy": np.random.get_state(),
            "python": random.getstate(),
            "modes": {n: m.training for n, m in pl_module.named_modules()},
            "trained": {n: p.requires_grad for n, p in pl_module.named_parameters()},
            "gradients": {n: p.grad for n, p in pl_module.named_parameters()},
            "attributes": sorted(vars(pl_module)),
            "logged": dict(trainer.logged_metrics),
            "for callbacks": dict(trainer.callback_metrics),
            "steps": trainer.global_step,
            "signals": (self.handlers, [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)]),
        }


def same(a: Any, b: Any) -> bool:
    """To the last bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, (torch.Tensor, np.ndarray)):
        return np.array_equal(np.asarray(a), np.asarray(b))
    return a == b


def ended(kind: type, folder: Path, callback: InfluenceCallback | None) -> tuple[dict[str, Any], Any]:
    L.seed_everything(3, verbose=False)
    seen, data = Seen(), Augmented()
    fitted(kind(), loader(data), [seen, *([callback] if callback else [])], folder)
    return seen.end, data.own.bit_generator.state


class Failing(GradientDot):
    def scores(self, trained, queries, tick=None):
        torch.randn(3), np.random.normal(), random.random()
        if trained.objective.n == N:  # not in the trial before the fit
            raise SolveError("CG met non-positive curvature.")
        return super().scores(trained, queries)


CALLBACKS = {
    "last layer": lambda: InfluenceCallback(QUERIES, every_n_epochs=1, self_influence=True),
    "gradients": lambda: InfluenceCallback(QUERIES, every_n_epochs=2, method=GradientDot()),
    "float32": lambda: InfluenceCallback(QUERIES, every_n_epochs=1, dtype="float32"),
    "failing": lambda: InfluenceCallback(QUERIES, every_n_epochs=1, method=Failing()),
}


@pytest.mark.parametrize("kind", [Stated, Plain])
@pytest.mark.parametrize("name", CALLBACKS)
def test_a_fit_ends_as_without_it(tmp_path, kind, name):
    without = ended(kind, tmp_path, None)
    assert same(without, ended(kind, tmp_path, CALLBACKS[name]()))
    other = ended(kind, tmp_path, None)[0]["weights"][-1]
    other["head.bias"][0] += 1e-15  # the comparison sees the last bit
    assert not same(without[0]["weights"][-1], other)


def engine(module: Any, data: DataLoader, weights: dict[str, torch.Tensor], damping: float) -> InfluenceEngine:
    """Of the last layer with its inputs fixed, by products with the Hessian: another path than that of the callback."""
    module.eval().load_state_dict(weights)
    contract = module if isinstance(module, Stated) else Adapted(module, losses_of)
    objective = Objective.of(contract, data, ("head.*",))
    theta = objective.losses.theta()
    return InfluenceEngine(objective, theta, Damped(Hessian(objective, theta), damping), CG(rtol=1e-12))


@pytest.mark.parametrize("how", ["stated", "given", "found"])
def test_scores_are_those_of_the_engine(tmp_path, how, capsys):
    module = Stated() if how == "stated" else Plain()
    given = losses_of if how == "given" else None
    seen = Seen()
    callback = InfluenceCallback(QUERIES, every_n_epochs=2, self_influence=True, damping=0.01, sample_losses=given)
    fitted(module, loader(), [seen, callback], tmp_path)
    folder = tmp_path / "influence"
    assert sorted(p.name for p in folder.iterdir()) == ["epoch_002", "epoch_003", "manifest.json"]
    for epoch in (2, 3):
        by = engine(module, loader(), seen.weights[epoch - 1], 0.01)
        expected = by.scores(QUERIES)
        for t in range(2):
            found = influences.load(folder / f"epoch_00{epoch}" / f"influences_test_{t}.npz")
            np.testing.assert_array_equal(found.train_ids, np.arange(N))
            value = expected.value[t].numpy()
            np.testing.assert_allclose(found.scores, value, rtol=0, atol=1e-6 * abs(value).max())  # kept in 32 bits
            assert found.score_mean == pytest.approx(value.mean(), abs=1e-9 * abs(value).max())
            assert found.residual <= 1e-10
            assert found.undamped_residual > 1e-3
            assert (found.method, found.damping, found.status) == ("last_layer", 0.01, "CONVERGED")
        own = self_influence.load(folder / f"epoch_00{epoch}" / "self_influence.npz")
        objective, theta = by.objective, by.theta
        np.testing.assert_allclose(own.last_layer, last_layer_self(objective, theta, 0.01), rtol=1e-8)
        np.testing.assert_allclose(own.loss, loss_ranking(objective, theta), rtol=1e-12)
        section = Manifest.at(folder / "manifest.json").sections()[f"epoch_00{epoch}"]
        assert section["recorded"]["grad_norm"] == pytest.approx(float(objective.gradient(theta).norm()), rel=1e-10)
        assert section["compared"]["attributed"] == ["head.*"]
    order = np.argsort(expected.value[1].numpy())
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(
        f"Influence after epoch 3: last_layer (head.*), damping 0.01, {N} training samples, nats per unit "
    )
    assert lines[1].split("  ")[0] == "test"
    best, worst = order[0], order[-1]
    assert lines[3].startswith(f"1     {best} {expected.value[1][best]:+.1e}  {order[1]} ")
    assert f"  {worst} {expected.value[1][worst]:+.1e}  " in lines[3]
    assert lines[4] == f"Files: {folder / 'epoch_003'}"


def test_gradient_dot_over_all_parameters(tmp_path):
    module, seen = Stated(), Seen()
    fitted(module, loader(), [seen, InfluenceCallback(QUERIES, method=GradientDot())], tmp_path)
    module.load_state_dict(seen.weights[-1])
    objective = Objective.of(module, loader())
    theta = objective.losses.theta()
    module.eval()
    G, g = (
        torch.func.jacrev(lambda t, b=b: objective.losses.sample_losses(t, b))(theta) for b in (samples(N)[:], QUERIES)
    )
    expected = (-g @ G.T / N).numpy()
    for t in range(2):
        found = influences.load(tmp_path / "influence" / "epoch_003" / f"influences_test_{t}.npz")
        np.testing.assert_allclose(found.scores, expected[t], rtol=0, atol=1e-6 * abs(expected[t]).max())


@pytest.mark.parametrize(
    ("queries", "ids"),
    [
        (samples(5, seed=1), [0, 1, 2]),
        (DataLoader(samples(5, seed=1), batch_size=2, shuffle=True), [0, 1, 2]),
        (DataLoader(samples(5, seed=1), batch_size=8, drop_last=True), [0, 1, 2]),  # its length is 0
        ((*samples(3, seed=1)[:], torch.tensor([7, 5, 9])), [7, 5, 9]),
        ({"x": QUERIES[0], "labels": QUERIES[1], "sample_index": torch.tensor([40, 2])}, [40, 2]),
    ],
    ids=["dataset", "loader", "loader without a whole batch", "third item", "key"],
)
def test_ids_are_the_samples_own_else_positions(tmp_path, queries, ids):
    data = Augmented()
    data.scale = 0.0
    setting = "third" if isinstance(queries, tuple) else "auto"
    fitted(Stated(), loader(data), [InfluenceCallback(queries, num_queries=3, ids=setting)], tmp_path / "own")
    found = tmp_path / "own" / "influence" / "epoch_003"
    assert sorted(p.name for p in found.iterdir()) == sorted(f"influences_test_{t}.npz" for t in ids)
    stored = influences.load(found / f"influences_test_{ids[0]}.npz")
    np.testing.assert_array_equal(stored.train_ids, np.arange(100, 100 + N))


def events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), {"histograms": 0, "scalars": 0, "tensors": 0})
    return found.Reload()


def test_tensorboard_gets_histograms_and_quantiles(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    callback = InfluenceCallback(QUERIES, every_n_epochs=1, self_influence=True)
    fitted(Stated(), loader(), [callback], tmp_path, logger=logger)
    folder, run = Path(logger.log_dir) / "influence", events(Path(logger.log_dir))
    steps = [5 * epoch for epoch in range(1, EPOCHS + 1)]
    names = ["influence/self_influence", "influence/test_0", "influence/test_1"]
    assert sorted(run.Tags()["histograms"]) == names
    texts = [one.tensor_proto.string_val[0].decode() for one in run.Tensors("influence/objective/text_summary")]
    recorded = Manifest.at(folder / "manifest.json").sections()[f"epoch_00{EPOCHS}"]["recorded"]
    assert texts[-1] == recorded["objective"]["text"]
    assert len(texts) == EPOCHS
    for name in names:
        shown = run.Histograms(name)
        assert [point.step for point in shown] == steps
        assert [point.histogram_value.num for point in shown] == [N] * EPOCHS
    for epoch, step in enumerate(steps, 1):
        scores = influences.load(folder / f"epoch_00{epoch}" / "influences_test_1.npz").scores
        for point, q in {"min": 0, "q05": 0.05, "median": 0.5, "q95": 0.95, "max": 1}.items():
            told = {p.step: p.value for p in run.Scalars(f"influence/test_1/{point}")}
            assert told[step] == pytest.approx(np.quantile(scores.astype(float), q), rel=1e-5)


class Deaf(Logger):
    """Has what Lightning asks of a logger, and no way to be told a number."""

    name, version = "deaf", 0

    def log_hyperparams(self, *args, **kwargs):
        """Nothing."""

    def log_metrics(self, metrics, step=None):
        if any(name.startswith("influence") for name in metrics):
            raise NotImplementedError("no metrics here")


def test_other_loggers_get_quantiles_and_a_deaf_one_is_warned_of_once(tmp_path, caplog):
    loggers = [Deaf(), CSVLogger(tmp_path)]
    with caplog.at_level(logging.WARNING, "ifloo.stages"):
        fitted(Stated(), loader(), [InfluenceCallback(QUERIES, every_n_epochs=1)], tmp_path, logger=loggers)
    assert [r.getMessage() for r in caplog.records if r.name.startswith("ifloo")] == [
        "Deaf takes no influence scores (NotImplementedError: no metrics here); they are in the output folder only."
    ]
    with open(Path(loggers[1].log_dir) / "metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row.get("influence/test_0/median")]
    assert [int(row["step"]) for row in rows] == [5, 10, 15]
    stored = influences.load(tmp_path / "influence" / "epoch_003" / "influences_test_0.npz")
    assert float(rows[-1]["influence/test_0/max"]) == pytest.approx(float(stored.scores.max()), rel=1e-6)


def test_a_failure_is_a_warning_and_the_fit_goes_on(tmp_path, caplog, capsys):
    with caplog.at_level(logging.WARNING, "ifloo.stages"):
        trainer = fitted(Stated(), loader(), [CALLBACKS["failing"]()], tmp_path)
    assert trainer.current_epoch == EPOCHS
    said = [r.getMessage() for r in caplog.records if r.name.startswith("ifloo")]
    text = "No influence scores after epoch {}; the fit is untouched. SolveError: CG met non-positive curvature."
    assert said == [text.format(epoch) for epoch in (1, 2, 3)]
    assert not (tmp_path / "influence").exists()
    assert capsys.readouterr().out == ""


class Steep(Stated):
    """In 32 bits, without penalty, with features near ±1 all over: ill-conditioned unless damped."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.float()
        with torch.no_grad():
            self.body[0].weight.copy_(30 * torch.randn_like(self.body[0].weight))

    def penalty(self):
        return torch.zeros(())


@pytest.mark.parametrize(
    ("dtype", "precision", "method"),
    [(None, "float64", "InfluenceFunction"), ("float32", "float32", "GradientDot")],
)
def test_where_32_bits_are_too_few_64_do_it(tmp_path, caplog, dtype, precision, method):
    x, y = samples(N)[:]
    callback = InfluenceCallback((QUERIES[0].float(), QUERIES[1]), damping=1e-7, dtype=dtype)
    with caplog.at_level(logging.WARNING, "ifloo.stages"):
        fitted(Steep(), loader(TensorDataset(x.float(), y)), [callback], tmp_path)
    section = Manifest.at(tmp_path / "influence" / "manifest.json").sections()["epoch_003"]
    assert section["recorded"]["precision"] == precision
    assert section["compared"]["method"]["class"] == method
    said = [r.getMessage() for r in caplog.records if r.name.startswith("ifloo.stages")]
    assert bool(said) == (dtype == "float32")
    assert all("the matrix is too ill-conditioned for torch.float32" in text for text in said)
    assert all(text.startswith("Influence is scored by gradient dot products of all parameters") for text in said)
    if dtype is None:
        assert section["recorded"]["worst_residual"] <= 1e-10


def test_a_frozen_part_stays_out_and_stays_frozen(tmp_path):
    module, seen = Stated(), Seen()
    module.body.requires_grad_(False)
    fitted(module, loader(), [seen, InfluenceCallback(QUERIES, method=GradientDot())], tmp_path)
    assert not any(p.requires_grad for p in module.body.parameters())
    expected = engine(module, loader(), seen.weights[-1], 0.0)
    G, g = (expected.products.query_gradients(b) for b in (samples(N)[:], QUERIES))
    found = influences.load(tmp_path / "influence" / "epoch_003" / "influences_test_1.npz").scores
    np.testing.assert_allclose(found, (-g @ G.T / N)[1], rtol=0, atol=1e-6 * abs(found).max())
