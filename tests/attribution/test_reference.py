"""The whole chain on 55,000 images against numbers made independently of this project: fit, H, solve, scores."""

import copy
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch

from ifloo.attribution import InfluenceEngine, Scores
from ifloo.curvature import Hessian
from ifloo.data import MNISTDataModule
from ifloo.gradients import sample_gradients
from ifloo.minimize.newton_cg import FitEnd
from ifloo.models import LogisticRegression
from ifloo.objective import FunctionalLosses, Objective, SampleWeights, TrainingData, sequential
from ifloo.params import ParamSpace
from ifloo.refit.newton_finish import NewtonFinish
from ifloo.refit.refitter import Refitter
from ifloo.refit.trainer_settings import TrainerSettings
from ifloo.solvers import CG, Nystrom

pytestmark = pytest.mark.full
REFERENCE = json.loads((Path(__file__).parents[1] / "reference" / "mnist_logistic_test8.json").read_text())
TOP = REFERENCE["top50_by_abs_score"]
TOP_IDS = torch.tensor([row["id"] for row in TOP])
TOP_SCORES = torch.tensor([row["score"] for row in TOP], dtype=torch.float64)


@dataclass(frozen=True)
class Fitted:
    """The model at its minimum, and the data it was fitted to."""

    module: LogisticRegression
    digits: MNISTDataModule
    finish: NewtonFinish
    minimum: FitEnd

    def scores(self, dtype: torch.dtype, rtol: float) -> Scores:
        """Scores of test image 8, all of it in one precision."""
        name = str(dtype).removeprefix("torch.")
        module = LogisticRegression(dtype=name)
        space = ParamSpace.of(module)
        theta = self.minimum.theta.to(dtype)
        data = TrainingData(sequential(self.digits.train_dataloader(), 5000), space.device, dtype)
        objective = Objective(FunctionalLosses(module, space), data)
        solver = CG(rtol=rtol, preconditioner=Nystrom())
        engine = InfluenceEngine(objective, theta, Hessian(objective, theta), solver, module.strong_convexity())
        query = {k: v.to(dtype) if v.is_floating_point() else v for k, v in self.digits.test_batch([8]).items()}
        return engine.scores(query)


@pytest.fixture(scope="module")
def fitted(mnist_root):
    threads = torch.get_num_threads()
    torch.set_num_threads(torch.multiprocessing.cpu_count())  # here a second thread does pay
    digits = MNISTDataModule(root=mnist_root, source="full", train_limit=55_000)
    module, finish = LogisticRegression(), NewtonFinish()
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[finish],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, digits)
    yield Fitted(module, digits, finish, finish.minimum)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def exact(fitted):
    return fitted.scores(torch.float64, 1e-10)


def test_the_fit_ends_at_the_minimum(fitted):
    assert fitted.minimum.grad_norm <= 1e-10
    # J is within ‖∇J‖² / 2λ = 5e-19 of its minimum; its own sum of 55,000 terms is good to 1e-15
    assert fitted.minimum.value == pytest.approx(REFERENCE["objective_at_optimum"], abs=1e-14)
    # ‖W‖ is within ‖∇J‖ / λ = 1e-8
    assert float(fitted.module.linear.weight.detach().norm()) == pytest.approx(REFERENCE["weight_norm"], abs=1e-8)


def test_accuracy_and_loss_of_the_test_images(fitted):
    digits = fitted.digits.test_batch(range(10_000))
    with torch.no_grad():
        right = (fitted.module.outputs(digits).argmax(1) == digits["labels"]).sum()
        loss = fitted.module.sample_losses(fitted.digits.test_batch([8]))
    assert int(right) / 10_000 == REFERENCE["test_accuracy"]
    # ‖∇L_t‖ ‖θ − θ̂‖ with a gradient near 10
    assert float(loss[0]) == pytest.approx(REFERENCE["test_loss"], abs=1e-7)


def test_scores_in_float64(exact):
    assert exact.value.shape == (1, 55_000)
    error = float((exact.value[0, TOP_IDS] - TOP_SCORES).abs().max())
    assert error <= 1e-9
    assert error <= float(exact.certificate.error_bound[0]), "the certificate must cover the actual error"
    assert float(exact.certificate.residual[0]) <= 1e-10
    ranked = exact.value[0].abs().topk(50).indices
    assert torch.equal(exact.train_ids[ranked], TOP_IDS)
    assert float(exact.mean[0]) == pytest.approx(REFERENCE["score_mean"], abs=1e-12)
    assert float(exact.value[0].std(correction=0)) == pytest.approx(REFERENCE["score_std"], rel=1e-6)
    assert int((exact.value < 0).sum()) == REFERENCE["negative_scores"]


def test_scores_in_float32(fitted, exact):
    """32 bits certify rtol 1e-6 here (down to 3e-7), and the scores are then good to 2e-7 of the largest one."""
    rough = fitted.scores(torch.float32, 1e-6)
    error = float((rough.value[0, TOP_IDS].double() - TOP_SCORES).abs().max())
    assert error <= 1e-5 * float(TOP_SCORES.abs().max())
    assert error <= float(rough.certificate.error_bound[0])
    everywhere = float((rough.value.double() - exact.value).abs().max())
    assert everywhere <= 1e-5 * float(exact.value.abs().max())


@pytest.mark.parametrize("removal", ["drop", "zero_weight"])
def test_refits_of_the_strongest(fitted, removal):
    """Refits through a Trainer change the loss of test 8 as the reference says, within their own certificate."""
    query = fitted.digits.test_batch([8])
    with torch.no_grad():
        base = float(fitted.module.sample_losses(query)[0])
    losses = FunctionalLosses(fitted.module, ParamSpace.of(fitted.module))
    steepness = float(sample_gradients(losses, losses.theta(), query).norm())
    recipe = TrainerSettings(accelerator="cpu")
    start = partial(copy.deepcopy, fitted.module)
    refitter = Refitter(start, fitted.digits.train_dataloader, recipe, fitted.finish, seed=0)
    for row in REFERENCE["loo"][:2]:
        refit = refitter.fit(SampleWeights.removing([row["id"]], removal, 55_000))
        with torch.no_grad():
            change = float(refit.module.sample_losses(query)[0]) - base
        certified = steepness * (refit.minimum.grad_norm + fitted.minimum.grad_norm) / 0.01
        assert certified <= 1e-4 * abs(change)
        assert change == pytest.approx(row[f"delta_{removal}"], abs=certified)
