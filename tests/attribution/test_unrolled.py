"""Unrolled influence against finite differences of the training run itself, made by torch.optim."""

import dataclasses
import functools
import re
from itertools import pairwise

import pytest
import torch
from torch import optim

from ifloo.attribution.recorded import RecordedRun, State
from ifloo.attribution.unrolled import ReverseState, Unrolled
from ifloo.attribution.updates import SGD, Adam
from ifloo.errors import InputError, WorkError
from ifloo.solvers import Status
from tests.attribution.runs import STEPS, N, Training

RUNS = {
    "sgd": (functools.partial(optim.SGD, lr=0.2), SGD()),
    "momentum": (functools.partial(optim.SGD, lr=0.1, momentum=0.9), SGD(momentum=0.9)),
    "dampened": (functools.partial(optim.SGD, lr=0.1, momentum=0.8, dampening=0.3), SGD(0.8, 0.3)),
    "nesterov": (functools.partial(optim.SGD, lr=0.1, momentum=0.9, nesterov=True), SGD(0.9, nesterov=True)),
    "adam": (functools.partial(optim.Adam, lr=0.02), Adam()),
    "adamw": (functools.partial(optim.AdamW, lr=0.02, weight_decay=0.1, betas=(0.8, 0.95)), Adam(0.8, 0.95, decay=0.1)),
}


def schedule(k):
    """Up, then down: each step has a rate of its own."""
    return min(1.0, (k + 1) / 4) * (1 - k / (STEPS + 1))


@pytest.fixture(params=RUNS.values(), ids=RUNS)
def training(request):
    make, update = request.param
    return Training(make, update, schedule)


def weights(i, value):
    return torch.ones(N, dtype=torch.float64).index_fill(0, torch.tensor([i]), value)


def difference(training, i, eps):
    """Central difference of the test losses in w_i, by two runs of torch's optimizer."""
    up, down = (training.test_losses(weights(i, 1 + e)) for e in (eps, -eps))
    return (up - down) / (2 * eps)


def test_it_is_the_derivative_of_the_run(training):
    found = Unrolled().scores(training.trained(), training.queries)
    assert found.train_ids.tolist() == training.samples.ids.tolist()
    for column, i in enumerate(found.train_ids.tolist()):
        # Central differences at 1e-5: truncation near 1e-10, cancellation near 1e-11 of losses near 1.
        torch.testing.assert_close(found.value[:, column], difference(training, i, 1e-5), rtol=1e-6, atol=1e-9)


def test_halving_the_weight_step_quarters_the_error(training):
    """The difference converges to the score at the rate of a central difference, O(ε²)."""
    found = Unrolled().scores(training.trained(), training.queries)
    i = int(found.train_ids[3])
    errors = [float((difference(training, i, e) - found.value[:, 3]).norm()) for e in (0.1, 0.05, 0.025, 0.0125)]
    assert all(3.5 < a / b < 4.5 for a, b in pairwise(errors)), errors


def test_it_holds_the_replay_against_the_recording(training):
    found = Unrolled().scores(training.trained(), training.queries)
    assert found.certificate.residual.shape == (3,)
    assert float(found.certificate.residual.max()) < 1e-12
    assert (found.certificate.steps.tolist(), found.certificate.status) == ([STEPS] * 3, (Status.REPLAYED,) * 3)


@pytest.mark.parametrize("every", [1, 5, STEPS])
def test_segments_do_not_show(training, every):
    expected = Unrolled().scores(training.trained(), training.queries)
    training.every = every
    torch.testing.assert_close(
        Unrolled().scores(training.trained(), training.queries).value, expected.value, rtol=1e-10, atol=1e-14
    )


def test_queries_may_come_together_or_alone(training):
    trained, queries = training.trained(), training.queries
    together = Unrolled().scores(trained, queries).value
    alone = [Unrolled().scores(trained, {k: x[t : t + 1] for k, x in queries.items()}).value for t in range(3)]
    torch.testing.assert_close(torch.cat(alone), together, rtol=1e-10, atol=1e-14)


class KilledError(Exception):
    pass


@dataclasses.dataclass
class Kept:
    """Keeps the reverse pass and dies after so many segments."""

    left: int
    last: ReverseState | None = None

    def load(self):
        return self.last

    def keep(self, reverse):
        self.last = reverse
        self.left -= 1
        if self.left == 0:
            raise KilledError


def test_a_killed_pass_goes_on(training):
    trained, queries = training.trained(), training.queries
    whole = Unrolled().scores(trained, queries)
    kept, ticks = Kept(left=2), []
    with pytest.raises(KilledError):
        Unrolled().resumed(trained, queries, kept)
    resumed = Unrolled().resumed(trained, queries, kept, lambda done, total: ticks.append(done))
    assert torch.equal(resumed.value, whole.value)
    assert ticks[0] > 1
    assert ticks[-1] == STEPS


def test_a_sample_never_seen_has_no_influence():
    """A run that saw only some of its samples."""
    training = Training(*RUNS["momentum"])
    trained = training.trained()
    few = RecordedRun(trained.run.update, trained.run.batch_ids[:1], trained.run.rates[:1], [0, 1], _one(training))
    end = few.state(1).theta
    found = Unrolled().scores(dataclasses.replace(trained, theta=end, run=few), training.queries)
    unseen = ~torch.isin(found.train_ids, few.batch_ids[0])
    assert bool((found.value[:, unseen] == 0).all())
    assert float(found.value[:, ~unseen].abs().min()) > 1e-6


def _one(training):
    training.every = 1
    return training.trained().run.state


def test_weights_without_a_gradient_do_not_become_nan():
    """Adam's √v has no derivative at 0; a weight that no sample and no penalty touches stays where it is."""
    update, theta = Adam(), torch.ones(2, dtype=torch.float64)

    def end(gradient):
        state = update.start(theta)
        for k in (1.0, 2.0):
            state = update.step(state, gradient, torch.tensor(0.1), torch.tensor(k))
        return state.theta

    slope = torch.func.jacrev(end)(torch.tensor([0.0, 0.5], dtype=torch.float64))
    assert bool(torch.isfinite(slope).all())
    # At 0 the step is rate · g / ε in g: torch's own finite difference, below ε.
    g = 1e-12
    moved = end(torch.tensor([g, 0.5], dtype=torch.float64)) - end(torch.tensor([-g, 0.5], dtype=torch.float64))
    assert float(slope[0, 0]) == pytest.approx(float(moved[0]) / (2 * g), rel=1e-3)


def test_a_run_that_was_not_recorded_is_refused():
    training = Training(*RUNS["sgd"])
    message = (
        "Unrolled influence is the derivative of a training run, and this model's run was not recorded.\n"
        "  Fit it with the recorder on (`ifloo fit` with a config whose `attribution.method` is "
        "ifloo.attribution.Unrolled), or use a method that needs the weights alone."
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        Unrolled().scores(dataclasses.replace(training.trained(), run=None), training.queries)


def test_a_replay_that_leaves_the_recording_is_refused():
    training = Training(*RUNS["momentum"])
    trained = training.trained()

    def other(k):
        state = trained.run.state(k)
        return State(state.theta * (1 + 1e-6), state.moments) if k == 8 else state

    message = (
        "The replayed training left the recorded one by step 12: their weights are 9.3e-07 apart, relative; "
        "1e-09 is allowed.\n"
        "  A derivative of another run explains nothing. Fit again on this machine with the same data "
        "(`ifloo fit --overwrite`); steps that differ between machines or libraries cannot be replayed."
    )
    with pytest.raises(WorkError, match=f"^{re.escape(message)}$"):
        Unrolled().scores(
            dataclasses.replace(trained, run=dataclasses.replace(trained.run, state=other)), training.queries
        )


def test_a_checkpoint_of_another_run_is_refused():
    training = Training(*RUNS["momentum"])
    trained = training.trained()
    with pytest.raises(WorkError, match=r"^The recorded run ends elsewhere than the checkpoint by step 14: "):
        Unrolled().scores(dataclasses.replace(trained, theta=trained.theta * 1.01), training.queries)


def test_data_without_the_recorded_samples_are_refused():
    training = Training(*RUNS["momentum"])
    trained = training.trained()
    ids = [x.clone() for x in trained.run.batch_ids]
    ids[3][0] = 77
    message = (
        "The recorded run saw samples that the training data do not hold, such as id 77.\n"
        "  Give the data the model was fitted on."
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        Unrolled().scores(
            dataclasses.replace(trained, run=dataclasses.replace(trained.run, batch_ids=ids)), training.queries
        )
