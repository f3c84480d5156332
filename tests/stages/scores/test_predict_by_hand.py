"""`trainer.predict` on loaders of the user's own: in order, each sample once, the scores of the engine."""

import os
import subprocess
import sys
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ifloo.attribution import GradientDot, InfluenceEngine
from ifloo.curvature import Hessian
from ifloo.data.loading import loader_of
from ifloo.errors import InputError
from ifloo.models import Adapted, LogisticRegression
from ifloo.objective import Objective
from ifloo.solvers import CG
from ifloo.stages import AttributionSettings, InfluencePredictor
from tests.conftest import CHECKOUT
from tests.stages.scores.test_influence_run import N, digits

QUERIES = 3
TIGHT = 1e-9  # of scores up to 0.01: both solves have residuals of at most 1e-10


def predict(predictor, loader, **settings) -> list[torch.Tensor]:
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        **settings,
    )
    return trainer.predict(predictor, loader)  # type: ignore[return-value]


def logistic() -> LogisticRegression:
    torch.manual_seed(0)
    module = LogisticRegression(l2_reg=1.0)  # λ so large that no fit is needed for H to be definite
    nn.init.normal_(module.linear.weight, std=0.1)
    return module


def engine(module, loader) -> InfluenceEngine:
    """The general path, by products: another one than a linear head takes."""
    objective = Objective.of(module, loader)
    theta = objective.losses.theta()
    return InfluenceEngine(objective, theta, Hessian(objective, theta), CG(rtol=1e-12))


@pytest.mark.parametrize("inference_mode", [True, False])
@pytest.mark.parametrize("curvature", [None, Hessian], ids=["head", "general"])
def test_training_samples_in_order(curvature, inference_mode):
    module, queries = logistic(), digits().test_batch(range(QUERIES))
    predictor = InfluencePredictor(
        module, digits().train_dataloader(), AttributionSettings(curvature=curvature), queries=queries
    )
    parts = predict(predictor, loader_of(digits().train_set, 7, 0), inference_mode=inference_mode)
    assert [part.shape for part in parts] == [(QUERIES, b) for b in (7, 7, 7, 7, 3)]
    expected = engine(module, digits().train_dataloader()).scores(queries)
    torch.testing.assert_close(torch.cat(parts, 1), expected.value, rtol=0, atol=TIGHT)
    again = predict(predictor, loader_of(digits().train_set, N, 0), inference_mode=inference_mode)
    # The same directions, products of 7,840 terms summed in other batches: √7,840 roundings of scores up to 2.
    torch.testing.assert_close(again[0], torch.cat(parts, 1), rtol=0, atol=1e-13)
    # The engine serves outside the Trainer too, whatever mode it was made in.
    torch.testing.assert_close(predictor.engine.scores(queries).value, expected.value, rtol=0, atol=TIGHT)


def test_without_a_loader_it_takes_the_training_samples():
    module, queries = logistic(), digits().test_batch(range(QUERIES))
    predictor = InfluencePredictor(module, digits().train_dataloader(), queries=queries)
    expected = engine(module, digits().train_dataloader()).scores(queries).value
    torch.testing.assert_close(torch.cat(predict(predictor, None), 1), expected, rtol=0, atol=TIGHT)


class Small:
    """Forty samples of five numbers, three classes, p = 15: minima by Newton to rounding."""

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(0)
        x = torch.randn(45, 5, generator=draw, dtype=torch.float64)
        y = torch.randint(3, (45,), generator=draw)
        self.train, self.tests = TensorDataset(x[:40], y[:40]), (x[40:42], y[40:42])
        self.candidates = TensorDataset(x[42:], y[42:])
        self.module = LogisticRegression(num_features=5, num_classes=3, l2_reg=0.1)
        self.loader = DataLoader(self.train, batch_size=16, shuffle=True)
        self.objective = Objective.of(self.module, self.loader)
        self.objective.losses.space.write_to(self.module, self.minimum())

    def minimum(self, candidate: int = 0, weight: float = 0.0) -> torch.Tensor:
        """Of J + (weight/n) ℓ of a candidate."""
        losses, one = self.objective.losses, tuple(x.unsqueeze(0) for x in self.candidates[candidate])

        def objective(t: torch.Tensor) -> torch.Tensor:
            parts = [self.objective.part(t, ids, batch) for ids, batch in self.objective.data.with_ids()]
            return sum(parts) + losses.penalty(t) + weight / 40 * losses.sample_losses(t, one).sum()

        theta = self.objective.losses.theta()
        for _ in range(8):
            theta = theta - torch.linalg.solve(torch.func.hessian(objective)(theta), torch.func.grad(objective)(theta))
        return theta


def test_the_score_of_a_candidate_is_the_derivative_in_its_weight():
    """Of test losses at the minimum of J + (w/n) ℓ: halving the step quarters the error of the central difference."""
    small = Small()
    predictor = InfluencePredictor(small.module, small.loader, queries=small.tests)
    scores = torch.cat(predict(predictor, DataLoader(small.candidates, batch_size=2)), 1)
    assert scores.shape == (2, 3)
    losses = small.objective.losses
    for c in range(3):
        errors = []
        for step in (0.4, 0.2, 0.1):
            up, down = (losses.sample_losses(small.minimum(c, w), small.tests) for w in (step, -step))
            errors.append(float((((up - down) / (2 * step)) - scores[:, c]).norm()))
        assert 3.8 < errors[0] / errors[1] < 4.2
        assert 3.8 < errors[1] / errors[2] < 4.2


class Plain(L.LightningModule):
    """As users write them: a mean loss, logged."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = nn.functional.cross_entropy(self.net(x), y)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_plain_module_is_adapted():
    small = Small()
    torch.manual_seed(0)
    module, settings = Plain(), AttributionSettings(damping=1.0)
    predictor = InfluencePredictor(module, small.loader, settings, queries=small.tests)
    scores = torch.cat(predict(predictor, DataLoader(small.train, batch_size=9)), 1)
    objective = Objective.of(Adapted(module), small.loader)
    theta = objective.losses.theta()
    H = torch.func.hessian(lambda t: sum(objective.part(t, ids, batch) for ids, batch in objective.data.with_ids()))
    G = torch.func.jacrev(lambda t: objective.losses.sample_losses(t, small.train[:]))(theta)
    g = torch.func.jacrev(lambda t: objective.losses.sample_losses(t, small.tests))(theta)
    dense = -g @ torch.linalg.solve(H(theta) + torch.eye(len(theta), dtype=torch.float64), G.T) / 40
    torch.testing.assert_close(scores, dense, rtol=0, atol=1e-10)


def test_no_queries():
    small = Small()
    with pytest.raises(InputError) as said:
        predict(InfluencePredictor(small.module, small.loader), DataLoader(small.train, batch_size=9))
    assert str(said.value) == (
        "InfluencePredictor has no queries: nothing to score against.\n"
        "  Give it a batch of test samples: InfluencePredictor(module, train_loader, queries=batch)."
    )


def test_another_method_is_refused():
    small = Small()
    with pytest.raises(InputError) as said:
        InfluencePredictor(small.module, small.loader, AttributionSettings(method=GradientDot()), queries=small.tests)
    assert str(said.value) == (
        "InfluencePredictor scores by curvature and solver; settings ask for method gradient_dot.\n"
        "  Leave method out, or score by it: method.scores(TrainedModel(objective, theta), queries)."
    )


@pytest.mark.slow
def test_two_processes_score_each_sample_once(tmp_path):
    """An odd number of samples, by `batch_indices`: what one process gives."""
    program = Path(__file__).with_name("shared_predict.py")
    env = {**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
    for devices in (1, 2):
        command = [sys.executable, str(program), str(devices), str(tmp_path)]
        ran = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
        assert ran.returncode == 0, ran.stderr
    (one,), two = ([np.load(p) for p in sorted(tmp_path.glob(f"{devices}_*.npz"))] for devices in (1, 2))
    assert [len(part["ids"]) for part in two] == [16, 15]
    ids = np.concatenate([part["ids"] for part in two])
    np.testing.assert_array_equal(np.sort(ids), np.arange(31))
    np.testing.assert_array_equal(one["ids"], np.arange(31))
    scores = np.concatenate([part["scores"] for part in two], 1)
    np.testing.assert_allclose(scores[:, np.argsort(ids)], one["scores"], rtol=0, atol=TIGHT)


def test_an_engine_that_is_not_built():
    small = Small()
    predictor = InfluencePredictor(small.module, small.loader)
    for read in (lambda: predictor.engine, predictor.own_rows):
        with pytest.raises(InputError) as caught:
            read()
        assert str(caught.value) == (
            "This InfluencePredictor has no engine yet.\n"
            "  Call build_engine() first; a run of trainer.predict(predictor) builds it too."
        )
    assert predictor.build_engine() is predictor.engine
