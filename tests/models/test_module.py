"""The contract as a LightningModule, under a real Trainer."""

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from ifloo.errors import InputError
from ifloo.models import LogisticRegression
from ifloo.objective import SampleWeights
from ifloo.refit.newton_finish import NewtonFinish
from tests.problems import Logistic, weights_with


def _fit(module, loader, *callbacks, **trainer):
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    L.Trainer(max_epochs=1, accelerator="cpu", callbacks=list(callbacks), **quiet, **trainer).fit(module, loader)
    return module


def _fresh(**settings):
    return LogisticRegression(num_features=4, num_classes=3, l2_reg=0.02, **settings)


def test_the_training_loss_is_the_weighted_objective():
    problem = Logistic.make()
    weights = torch.ones(problem.n, dtype=torch.float64)
    weights[2] = 0.25
    problem.module.sample_weights = weights_with([2], [0.25])
    batch = {"x": problem.x, "labels": problem.labels, "idx": torch.arange(problem.n)}
    loss = problem.module.training_step(batch, 0).detach()
    torch.testing.assert_close(loss, problem.value(problem.theta, weights), rtol=1e-14, atol=0)


def test_a_fit_through_a_trainer_ends_at_the_minimum_of_newton():
    problem = Logistic.make()
    finish = NewtonFinish()
    module = _fit(_fresh(), problem.loader(batch_size=50), finish)
    # ‖θ − θ̂‖ <= ‖∇J‖ / λ = 1e-10 / 0.02
    torch.testing.assert_close(problem.space.values_of(module), problem.theta, rtol=0, atol=5e-9)
    assert finish.minimum.grad_norm <= 1e-10


@pytest.mark.parametrize("removal", ["drop", "zero_weight"])
def test_a_refit_without_a_sample_ends_where_the_data_without_it_lead(removal):
    problem = Logistic.make()
    module = _fresh()
    module.sample_weights = SampleWeights.removing([7], removal, problem.n)
    _fit(module, problem.loader(batch_size=50), NewtonFinish())
    keep = torch.arange(problem.n) != 7
    left = Logistic(problem.module, problem.x[keep], problem.labels[keep], problem.queries, problem.penalty)
    weights = None if removal == "drop" else torch.full((49,), 49 / 50, dtype=torch.float64)
    torch.testing.assert_close(problem.space.values_of(module), left.fit(weights), rtol=0, atol=5e-9)


def test_removal_from_batches_without_ids():
    problem = Logistic.make()
    problem.module.sample_weights = SampleWeights.removing([7, 3], "drop", 50)
    with pytest.raises(InputError) as caught:
        problem.module.training_step((problem.x, problem.labels), 0)
    assert str(caught.value) == (
        "Removing samples [3, 7] needs batches that carry sample ids; this one, a tuple, has none.\n"
        "  Give each sample its id under key `idx` or `sample_index`, or load the batches by "
        "ifloo.objective.loaders.identified."
    )


@pytest.mark.parametrize(
    ("batch_size", "trainer", "got"),
    [
        (20, {}, "3 batches an epoch (batch_size < n)"),
        (50, {"accumulate_grad_batches": 2}, "accumulate_grad_batches = 2"),
        (50, {"gradient_clip_val": 0.5}, "gradient_clip_val = 0.5"),
        (50, {"precision": "bf16-mixed"}, "precision = bf16-mixed"),
        (
            20,
            {"accumulate_grad_batches": 3, "gradient_clip_val": 1.0},
            "3 batches an epoch (batch_size < n); accumulate_grad_batches = 3; gradient_clip_val = 1",
        ),
    ],
)
def test_lbfgs_refuses_what_makes_its_function_move(batch_size, trainer, got):
    loader = DataLoader(Logistic.make().loader().dataset, batch_size=batch_size)
    with pytest.raises(InputError) as caught:
        _fit(_fresh(), loader, **trainer)
    assert str(caught.value) == (
        "Optimizer lbfgs minimises one fixed function: it needs the full batch, no accumulation, no clipping and full "
        f"precision; got {got}.\n"
        "  Raise --data.batch_size to the number of training samples and leave the others out, or use "
        "--model.optimizer sgd or adamw."
    )


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_other_optimizers_take_mini_batches_and_decay_nothing(name):
    module = _fit(_fresh(optimizer=name, lr=0.1), Logistic.make().loader(batch_size=20))
    optimizer = module.configure_optimizers()
    assert not optimizer.param_groups[0]["weight_decay"]  # the penalty is in J
    assert float(module.linear.weight.detach().norm()) > 0


@pytest.mark.parametrize("l2_reg", [-0.1, float("nan"), float("inf")])
def test_penalty_out_of_range(l2_reg):
    with pytest.raises(InputError) as caught:
        LogisticRegression(l2_reg=l2_reg)
    assert str(caught.value) == f"l2_reg must be a finite number >= 0, got {l2_reg}."


def test_strong_convexity_is_known_only_with_a_penalty():
    assert LogisticRegression(l2_reg=0.01).strong_convexity() == pytest.approx(0.01)
    assert LogisticRegression(l2_reg=0.0).strong_convexity() is None
