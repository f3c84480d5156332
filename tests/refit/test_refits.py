"""Refits through a Trainer: whatever form the batches have, and never on other data than the fit's."""

import dataclasses
import itertools
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset

from ifloo.errors import InputError, WorkError
from ifloo.models import LogisticRegression, SampleLossModule
from ifloo.objective import Objective, SampleWeights
from ifloo.objective.loaders import Identified, identified
from ifloo.refit import NewtonFinish, Refitter, TrainerSettings, quiet_lightning
from ifloo.solvers import Nystrom

N, D, C = 30, 4, 3
FINISH = {"tolerance": 1e-12, "preconditioner": Nystrom(rank=4)}


def dataset(seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(N, D, generator=generator, dtype=torch.float64)
    return TensorDataset(x, torch.randint(C, (N,), generator=generator))


def model():
    return LogisticRegression(num_features=D, num_classes=C, l2_reg=0.1)


def refitter(data, shuffle=False, finish=None):
    return Refitter(
        start=model,
        loader=lambda: DataLoader(data, batch_size=N, shuffle=shuffle),
        trainer_settings=TrainerSettings(accelerator="cpu"),
        finish=finish or NewtonFinish(**FINISH),
        seed=0,
    )


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("removal", ["drop", "zero_weight"])
def test_a_batch_without_ids_loses_the_sample_at_that_position(shuffle, removal):
    """`(x, y)` batches: the position in the dataset is the id, in whatever order the loader draws."""
    data, gone = dataset(), 7
    weights = SampleWeights.removing([gone], removal, N)
    refit = refitter(data, shuffle).fit(weights)
    kept = [i for i in range(N) if i != gone]
    n = len(kept) if removal == "drop" else N

    def gradient(theta):
        W = theta.reshape(C, D)
        x, y = data.tensors[0][kept], data.tensors[1][kept]
        return torch.nn.functional.cross_entropy(x @ W.T, y, reduction="sum") / n + 0.05 * W.square().sum()

    theta = refit.module.linear.weight.detach().flatten()
    # An independent J, the row truly left out; ‖∇J‖ is the fit's tolerance and a few roundings.
    assert float(torch.func.grad(gradient)(theta).norm()) <= 2e-12


class KeyedRows(TensorDataset):
    def __getitem__(self, i):
        x, y = super().__getitem__(i)
        return {"x": x, "y": y, "idx": torch.tensor(i)}


def test_batches_that_carry_ids_are_left_as_they_are():
    loader = DataLoader(KeyedRows(*dataset().tensors), batch_size=8)
    assert identified(loader) is loader
    batch = next(iter(identified(DataLoader(dataset(), batch_size=8))))
    assert isinstance(batch, Identified)
    assert batch.positions.tolist() == list(range(8))


def test_one_finish_serves_two_data_sets_and_certifies_each():
    finish = NewtonFinish(**FINISH)
    for seed in (0, 1):
        data = dataset(seed)
        refit = refitter(data, finish=finish).fit()
        objective = Objective.of(refit.module, DataLoader(data, batch_size=N))
        assert float(objective.gradient(objective.losses.theta()).norm()) <= 2e-12
        assert refit.minimum.grad_norm <= 1e-12
        assert finish.minimum is None  # the end of a refit is its own


@pytest.fixture
def passes(monkeypatch):
    """Every θ at which J and its gradient are computed."""
    seen: list[torch.Tensor] = []
    measure = Objective.value_and_gradient
    monkeypatch.setattr(
        Objective, "value_and_gradient", lambda self, theta: seen.append(theta.clone()) or measure(self, theta)
    )
    return seen


def test_a_finish_measures_no_weights_twice(passes):
    refitter(dataset(), finish=NewtonFinish(**FINISH)).fit()
    assert len(passes) > 2
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(passes, 2))


def test_a_refit_interrupted_before_its_end_says_how_to_resume(monkeypatch):
    monkeypatch.setattr(L.Trainer, "fit", lambda *_: None)
    with pytest.raises(WorkError) as caught:
        refitter(dataset()).fit()
    assert str(caught.value) == "A refit was interrupted before its end.\n  Run the same command to resume."


def test_a_sampler_of_part_of_the_data_is_refused():
    loader, finish = DataLoader(dataset(), sampler=SubsetRandomSampler(range(20))), NewtonFinish(**FINISH)
    with pytest.raises(InputError) as caught:
        finish.objective(refitter(dataset()).start(), loader)
    assert str(caught.value) == (
        "The training loader draws with SubsetRandomSampler; J is the mean over every sample once.\n"
        "  Use shuffle=True or False; for a part of the data wrap the dataset (torch.utils.data.Subset)."
    )


def test_a_trainer_that_refits_cannot_repeat_is_refused():
    trainer = L.Trainer(limit_train_batches=0.5, max_epochs=1, accelerator="cpu", logger=False)
    with pytest.raises(InputError) as caught:
        TrainerSettings.of(trainer)
    assert str(caught.value) == (
        "Refits train on all the data, as J is over all of it; got limit_train_batches = 0.5, overfit_batches = 0.0.\n"
        "  To train on fewer samples limit the data module."
    )
    with pytest.raises(InputError) as caught:
        TrainerSettings.of(L.Trainer(max_steps=3, accelerator="cpu", logger=False))
    assert str(caught.value) == (
        "A base fit must have an end that refits can repeat; got max_epochs = None.\n  Set max_epochs."
    )


TRAINERS: list[dict[str, Any]] = [
    {"gradient_clip_algorithm": "VALUE", "gradient_clip_val": 1, "precision": 64},
    {"gradient_clip_algorithm": "norm", "gradient_clip_val": 0.5, "max_steps": 3, "accumulate_grad_batches": 2},
    {"precision": "bf16"},
    {},
]


@pytest.mark.parametrize("settings", TRAINERS)
def test_a_recipe_is_made_of_plain_values_and_is_what_was_said(settings):
    """Such as a checkpoint may hold and be loaded without running code: no enum of Lightning's."""
    with quiet_lightning():
        recipe = TrainerSettings.of(
            L.Trainer(max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, **settings)
        )
    assert {type(value) for value in dataclasses.asdict(recipe).values()} <= {int, float, str, type(None)}
    assert (
        TrainerSettings.from_flags(SimpleNamespace(max_epochs=2, **settings)).identity_settings()
        == recipe.identity_settings()
    )


def test_a_training_step_of_ones_own_is_refused():
    with pytest.raises(InputError) as caught:
        type("Mine", (SampleLossModule,), {"training_step": lambda self, batch, _: 0.0})
    assert str(caught.value) == (
        "Mine defines training_step, which is final: mean of w * sample_losses + penalty.\n"
        "  State the loss in sample_losses and penalty; scores and refits are of the function they make up."
    )


class Decaying(LogisticRegression):
    """The trap of torch's AdamW: weight decay that J does not contain."""

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def test_weight_decay_outside_the_objective_is_refused():
    faulty = Decaying(num_features=D, num_classes=C)
    trainer = TrainerSettings(accelerator="cpu").trainer(NewtonFinish(**FINISH))
    with pytest.raises(InputError) as caught:
        trainer.fit(faulty, DataLoader(dataset(), batch_size=N))
    assert str(caught.value) == (
        "The optimizer decays weights (weight_decay = 0.01), which J does not contain: the curvature would be that of "
        "another function than the one trained.\n"
        "  Set weight_decay=0 (torch's AdamW has 0.01 by default) and state the penalty in `penalty`."
    )
