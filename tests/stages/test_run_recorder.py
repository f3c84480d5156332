"""A fit through a Trainer, recorded: the same fit, read back as a fold of one step, and its derivative."""

import dataclasses
import functools
import math

import pytest
import torch
from torch import nn, optim

from ifloo.attribution import TrainedModel as TrainedModel
from ifloo.attribution import Unrolled, updates
from ifloo.objective import Objective, SampleWeights
from ifloo.params import ParamSpace
from ifloo.stages import RunRecorder
from ifloo.store import RunFolder
from tests.refit.trained import N, Trained, dataset, perceptron, refitter

EPOCHS, BATCHES = 3, 4  # of 7, 7, 7 and 3 samples
STEPS = EPOCHS * BATCHES
IDS = torch.arange(100, 100 + N)

RUNS = {
    "sgd": (functools.partial(optim.SGD, lr=0.2), updates.SGD()),
    "momentum": (functools.partial(optim.SGD, lr=0.1, momentum=0.9), updates.SGD(0.9)),
    "nesterov": (functools.partial(optim.SGD, lr=0.1, momentum=0.9, nesterov=True), updates.SGD(0.9, nesterov=True)),
    "adam": (functools.partial(optim.Adam, lr=0.02, betas=(0.8, 0.9)), updates.Adam(0.8, 0.9)),
    "adamw": (functools.partial(optim.AdamW, lr=0.02, weight_decay=0.1), updates.Adam(decay=0.1)),
    "adamw by its flag": (
        functools.partial(optim.Adam, lr=0.02, weight_decay=0.1, decoupled_weight_decay=True),
        updates.Adam(decay=0.1),
    ),
}


def share(k):
    """Of the highest rate: each step has one of its own."""
    return min(1.0, (k + 1) / 4) * (1 - k / (2 * STEPS))


def stepwise(module, optimizer):
    return {"scheduler": optim.lr_scheduler.LambdaLR(optimizer, share), "interval": "step"}


def fits(optimizer, ids=True, **recipe):
    """Fits of one model, shuffled, with a last batch of another size."""
    how = refitter(
        lambda: Trained(perceptron(), optimizer, stepwise),
        shuffle=True,
        data=dataset(ids),
        **{"max_epochs": EPOCHS} | recipe,
    )
    return dataclasses.replace(how, allow_decoupled_decay=True)


def recorded(how, folder):
    """The fitted module, its weights, and the run as it is read back."""
    module = how.train(how.start, RunRecorder(folder))
    theta = ParamSpace.of(module).values_of(module)
    return module, theta, folder.read(theta)


@pytest.fixture
def folder(tmp_path):
    return RunFolder.of(tmp_path / "base.pth")


def batch_of(ids, first=int(IDS[0])):
    x, labels = dataset().tensors
    return x[ids - first], labels[ids - first]


def replayed(module, run, first=int(IDS[0])):
    """The state after each step, by autograd on the batches that were recorded."""
    space = ParamSpace.of(module)
    states = [run.state(0)]
    for k, ids in enumerate(run.batch_ids):
        theta = states[-1].theta.requires_grad_()
        batch = batch_of(ids, first)
        parameters = space.unflatten(theta)
        losses = torch.func.functional_call(_Losses(module), {f"module.{n}": x for n, x in parameters.items()}, batch)
        gradient = torch.autograd.grad(losses, theta)[0]
        states.append(
            run.update.step(
                dataclasses.replace(states[-1], theta=theta.detach()),
                gradient,
                run.rates[k],
                torch.tensor(k + 1.0, dtype=torch.float64),
            )
        )
    return states


class _Losses(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *batch):
        return self.module.sample_losses(batch).mean() + self.module.penalty()


@pytest.mark.parametrize(("optimizer", "update"), RUNS.values(), ids=RUNS)
def test_a_recorded_run_replays_to_the_weights(folder, optimizer, update):
    module, theta, run = recorded(fits(optimizer), folder)
    assert run.update == update
    states = replayed(module, run)
    assert float((states[-1].theta - theta).norm()) < 1e-12
    for k in run.saved:
        kept = run.state(k)
        assert len(kept.moments) == len(states[k].moments)
        for ours, theirs in zip((kept.theta, *kept.moments), (states[k].theta, *states[k].moments), strict=True):
            torch.testing.assert_close(ours, theirs.detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("optimizer", "update"), RUNS.values(), ids=RUNS)
def test_it_says_what_each_step_saw_and_how_far_it_went(folder, optimizer, update):
    _, _, run = recorded(fits(optimizer), folder)
    assert [len(ids) for ids in run.batch_ids] == [7, 7, 7, 3] * EPOCHS
    for e in range(EPOCHS):
        epoch = torch.cat(run.batch_ids[e * BATCHES : (e + 1) * BATCHES])
        assert epoch.tolist() != IDS.tolist()  # shuffled
        assert epoch.sort().values.tolist() == IDS.tolist()
    lr = optimizer([nn.Parameter(torch.zeros(1))]).param_groups[0]["lr"]
    assert run.rates.tolist() == [lr * share(k) for k in range(STEPS)]
    assert run.saved == [0, 3, 6, 9, 12]


@pytest.mark.parametrize(("optimizer", "update"), RUNS.values(), ids=RUNS)
def test_recording_changes_nothing(folder, optimizer, update):
    how = fits(optimizer)
    _, theta, _ = recorded(how, folder)
    assert torch.equal(theta, how.fit().minimum.theta)


QUERIES = tuple(x[:3] for x in dataset().tensors)


def losses_at(how, i, weight):
    """Test losses after a fit through Lightning in which sample i has another weight."""
    module = how.fit(SampleWeights.stepped(i, weight)).module
    with torch.no_grad():
        return module.sample_losses(QUERIES)


@pytest.mark.parametrize("name", ["momentum", "adamw"])
@pytest.mark.parametrize("ids", [True, False], ids=["own ids", "positions"])
def test_unrolled_is_the_derivative_of_the_fit(folder, name, ids):
    """Batches without ids are told by the positions that the loader drew."""
    how = fits(RUNS[name][0], ids)
    module, theta, run = recorded(how, folder)
    objective = Objective.of(module, how.loader())
    found = Unrolled().scores(TrainedModel(objective, theta, run), QUERIES)
    assert float(found.certificate.residual.max()) < 1e-12
    known = found.train_ids.tolist()
    assert known == (IDS.tolist() if ids else list(range(N)))
    for column in (0, 11, 23):
        up, down = (losses_at(how, known[column], 1 + e) for e in (1e-5, -1e-5))
        # Truncation of a central difference at 1e-5 is near 1e-10, cancellation near 1e-11 of losses near 1.
        torch.testing.assert_close(found.value[:, column], (up - down) / 2e-5, rtol=1e-6, atol=1e-9)


def test_positions_cover_data_without_ids(folder):
    module, theta, run = recorded(fits(RUNS["adam"][0], ids=False), folder)
    assert torch.cat(run.batch_ids[:BATCHES]).sort().values.tolist() == list(range(N))
    assert float((replayed(module, run, first=0)[-1].theta - theta).norm()) < 1e-12


@pytest.mark.parametrize(
    ("recipe", "steps"), [({"max_epochs": 1}, 4), ({"max_epochs": 5}, 20), ({"max_steps": 9}, 9), ({"max_steps": 7}, 7)]
)
def test_epochs_or_steps_end_a_run(folder, recipe, steps):
    module, theta, run = recorded(fits(RUNS["momentum"][0], **recipe), folder)
    assert run.steps == len(run.rates) == steps
    every = math.isqrt(steps)
    assert run.saved == sorted({*range(0, steps + 1, every), steps})
    assert sorted(p.name for p in folder.path.glob("state_*")) == [f"state_{k:07d}.npz" for k in run.saved]
    assert float((replayed(module, run)[-1].theta - theta).norm()) < 1e-12


def test_groups_of_equal_settings_are_one(folder):
    def split(parameters):
        first, *others = parameters
        return optim.SGD([{"params": [first]}, {"params": others}], lr=0.1)

    module, theta, run = recorded(fits(split), folder)
    assert float((replayed(module, run)[-1].theta - theta).norm()) < 1e-12


class StopError(Exception):
    pass


class Stopping(RunRecorder):
    """Dies after the fifth step."""

    def on_train_batch_end(self, *arguments):
        super().on_train_batch_end(*arguments)
        if len(self.batch_ids) == 5:
            raise StopError


def test_an_interrupted_fit_leaves_the_run_that_is_there(folder):
    how = fits(RUNS["adam"][0])
    _, theta, run = recorded(how, folder)
    with pytest.raises(StopError):
        how.train(how.start, Stopping(folder))
    assert folder.part.is_dir()
    assert folder.read(theta).steps == run.steps == STEPS
    _, theta, run = recorded(fits(RUNS["adam"][0], max_steps=2), folder)
    assert run.saved == [0, 1, 2]
    assert not folder.part.exists()
