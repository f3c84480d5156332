"""Every method of attribution: the laws that all obey, one row each, and exact checks against plain autograd."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from ifloo.attribution import (
    GradientCosine,
    GradientDot,
    InfluenceFunction,
    Method,
    OneStep,
    RandomScores,
    TracIn,
    TrainedModel,
    gradient_cosine,
    one_step,
)
from ifloo.attribution.recorded import HOW_TO_RECORD, RecordedRun, State
from ifloo.curvature import GaussNewton, LinearHead
from ifloo.errors import InputError
from ifloo.objective import batch_size
from ifloo.solvers import CG, Auto, Cholesky
from tests.attribution.descents import BATCHES, CLOSE, RATES, Plain, among, descended, gradients, made, states, trained
from tests.problems import Attention, Logistic, Problem, Ridge

HEAD = ("head.*", "linear.*")  # of either problem
TIME = float(RATES.sum())
SHARP = CG(rtol=1e-13)


# The truth about each method, in loops.


def dot(problem: Problem) -> Tensor:
    Q, G = gradients(problem, problem.theta)
    return -Q @ G.T / problem.n


def cosine(problem: Problem) -> Tensor:
    Q, G = gradients(problem, problem.theta)
    return torch.stack([torch.stack([-(q @ g) / (q.norm() * g.norm()) for g in G]) for q in Q])


def along_the_run(ends: dict[int, int]) -> Callable[[Problem], Tensor]:
    """TracIn with the state that each step is counted at."""

    def truth(problem: Problem) -> Tensor:
        value = torch.zeros(len(problem.queries["x"]), problem.n, dtype=torch.float64)
        for step, (ids, rate) in enumerate(zip(BATCHES, RATES.tolist(), strict=True)):
            Q, G = gradients(problem, states(type(problem))[ends[step]])
            for i in ids:
                value[:, i] -= rate / len(ids) * (Q @ G[i])
        return value

    return truth


def stepped(rate: float) -> Callable[[Problem], Tensor]:
    def truth(problem: Problem) -> Tensor:
        _, G = gradients(problem, problem.theta)
        before = problem.query_losses(problem.theta)
        after = [problem.query_losses(problem.theta - rate * g / problem.n) for g in G]
        return torch.stack([a - before for a in after], 1).detach()

    return truth


def solved(damping: float, parameters: tuple[str, ...] | None = None) -> Callable[[Problem], Tensor]:
    """By dense algebra; of some parameters the block of the Hessian, which is linear in them."""

    def truth(problem: Problem) -> Tensor:
        Q, G = gradients(problem, problem.theta)
        C = problem.dense_gauss_newton()
        if parameters:
            kept = among(problem, ("head", "linear"))
            Q, G, C = Q[:, kept], G[:, kept], problem.dense_hessian()[kept][:, kept]
        return -Q @ torch.linalg.solve(C + damping * torch.eye(len(C), dtype=C.dtype), G.T) / problem.n

    return truth


ENDS = {0: 2, 1: 2, 2: 3, 3: 6, 4: 6, 5: 6}
MERGED = {0: 2, 1: 2, 2: 6, 3: 6, 4: 6, 5: 6}
METHODS: dict[str, tuple[Method, Callable[[Problem], Tensor] | None]] = {  # the method and the truth, None for the lot
    "gradient_dot": (GradientDot(), dot),
    "gradient_cosine": (GradientCosine(), cosine),
    "tracin": (TracIn(), along_the_run(ENDS)),
    "tracin, all states": (TracIn(checkpoints=None), along_the_run(ENDS)),
    "tracin, two states": (TracIn(checkpoints=2), along_the_run(MERGED)),
    "tracin, the last state": (TracIn(checkpoints=1), along_the_run(dict.fromkeys(range(6), 6))),
    "one_step": (OneStep(), stepped(TIME)),
    "one_step, rate given": (OneStep(rate=0.5), stepped(0.5)),
    "random": (RandomScores(seed=3), None),
    "gauss_newton": (InfluenceFunction("gauss_newton", solver=SHARP), solved(1 / TIME)),
    "gauss_newton, damping given": (InfluenceFunction("gauss_newton", GaussNewton, 0.3, SHARP), solved(0.3)),
    "last_layer": (InfluenceFunction("last_layer", LinearHead, 0.0, Cholesky(), HEAD), solved(0.0, HEAD)),
    "last_layer, Auto": (InfluenceFunction("last_layer", LinearHead, 0.2, Auto(1e-13), HEAD), solved(0.2, HEAD)),
}


# The laws.


def shape(method, truth, kind):
    given, queries = trained(kind), made(kind).queries
    found, before = [], given.objective.losses.theta()
    scores = method.scores(given, queries, lambda *how_far: found.append(how_far))
    assert scores.value.shape == (batch_size(queries), made(kind).n)
    assert scores.value.dtype is torch.float64
    assert scores.train_ids.tolist() == list(range(made(kind).n))
    assert found == sorted(found)
    assert found[-1][0] == found[-1][1] > 0
    assert torch.equal(given.objective.losses.theta(), before)


def batch_size_free(method, truth, kind):
    expected = method.scores(trained(kind), made(kind).queries).value
    for size in (1, 5, 1000):
        found = method.scores(trained(kind, size), made(kind).queries).value
        torch.testing.assert_close(found, expected, **CLOSE)


def query_batching_free(method, truth, kind):
    given, queries = trained(kind), made(kind).queries
    expected = method.scores(given, queries).value
    for size in (1, 2):
        parts = [{k: v[i : i + size] for k, v in queries.items()} for i in range(0, batch_size(queries), size)]
        found = torch.cat([method.scores(given, part).value for part in parts])
        torch.testing.assert_close(found, expected, **CLOSE)


def order_free(method, truth, kind):
    order = torch.randperm(made(kind).n, generator=torch.Generator().manual_seed(0))
    expected = method.scores(trained(kind), made(kind).queries).value
    scores = method.scores(trained(kind, order=order), made(kind).queries)
    assert torch.equal(scores.train_ids, order)
    torch.testing.assert_close(scores.value, expected[:, order], **CLOSE)


def moves_queries(method, truth, kind):
    given, queries = trained(kind), made(kind).queries
    coarse = {k: v.float() if v.is_floating_point() else v for k, v in queries.items()}
    same = {k: v.double() if v.is_floating_point() else v for k, v in coarse.items()}
    found, expected = method.scores(given, coarse).value, method.scores(given, same).value
    assert torch.equal(found, expected)


def gradients_off_around_it(method, truth, kind):
    expected = method.scores(trained(kind), made(kind).queries).value
    with torch.inference_mode():
        found = method.scores(trained(kind), made(kind).queries).value
    torch.testing.assert_close(found, expected, **CLOSE)


def exact(method, truth, kind):
    if truth is not None:
        found = method.scores(trained(kind), made(kind).queries).value
        torch.testing.assert_close(found, truth(made(kind)), **CLOSE)


def a_sample_helps_itself(method, truth, kind):
    """Of a query that is also a training sample the score is negative: more weight on it lowers its loss."""
    problem = made(kind)
    seen = sorted({i for b in BATCHES for i in b})
    queries = {"x": problem.x[seen], "labels": problem.labels[seen], "idx": torch.tensor(seen)}
    own = method.scores(trained(kind), queries).value[:, seen].diagonal()
    assert truth is None or (own < 0).all()


LAWS = [
    shape,
    batch_size_free,
    query_batching_free,
    order_free,
    moves_queries,
    gradients_off_around_it,
    exact,
    a_sample_helps_itself,
]


@pytest.mark.parametrize("kind", [Logistic, Attention], ids=lambda k: k.__name__)
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("case", METHODS)
def test_method(case, law, kind):
    law(*METHODS[case], kind)


# What belongs to one method.


@pytest.mark.parametrize("at_once", [1, 200, 10**6])
def test_slices_do_not_show(at_once, monkeypatch):
    monkeypatch.setattr(gradient_cosine, "BYTES_AT_ONCE", at_once)
    monkeypatch.setattr(one_step, "PAIRS_AT_ONCE", max(1, at_once // 100))
    for name, method in (("gradient_cosine", GradientCosine()), ("one_step", OneStep(max_bytes=at_once))):
        found = method.scores(trained(Logistic), made(Logistic).queries).value
        torch.testing.assert_close(found, METHODS[name][1](made(Logistic)), **CLOSE)


def test_the_cosine_of_no_gradient_is_zero():
    problem = Ridge.make()
    problem.x[4] = 0.0
    queries = {**problem.queries, "x": torch.cat([problem.queries["x"][:2], torch.zeros(1, 5, dtype=torch.float64)])}
    value = GradientCosine().scores(TrainedModel(problem.objective(), problem.theta), queries).value
    assert (value[:, 4] == 0).all()
    assert (value[2] == 0).all()
    assert ((value[:2, :4].abs() > 0) & (value[:2, :4].abs() <= 1 + 1e-15)).all()


def test_tracin_is_what_a_step_of_gradient_descent_did():
    """One step with and without each sample of the batch: the error is O(η²), so half the rate leaves a quarter."""
    problem, ids, start = made(Logistic), [3, 1, 4, 8, 20], states(Logistic)[0]
    errors = []
    for rate in (0.04, 0.02, 0.01, 0.005):
        end = descended(problem, start, ids, rate)
        run = RecordedRun(Plain(), [torch.tensor(ids)], torch.tensor([rate]), (0, 1), {1: State(end, ())}.__getitem__)
        value = TracIn().scores(TrainedModel(problem.objective(), end, run), problem.queries).value
        without = [descended(problem, start, ids, rate, (torch.tensor(ids) != i).double()) for i in ids]
        effect = torch.stack([problem.query_losses(end) - problem.query_losses(t) for t in without], 1)
        assert (value[:, [i for i in range(problem.n) if i not in ids]] == 0).all()
        errors.append(float((value[:, ids] - effect).norm()))
    assert all(3.9 < a / b < 4.1 for a, b in pairwise(errors)), errors


def test_each_random_number_belongs_to_its_ids():
    """Of 2,500 numbers the mean, the variance and every correlation are within five standard errors."""
    problem = Logistic.make()
    queries = {k: v.repeat(17, *[1] * (v.ndim - 1))[:50] for k, v in problem.queries.items()}
    queries["idx"] = torch.arange(50)
    given = TrainedModel(problem.objective(), problem.theta)
    Z, other = (RandomScores(seed).scores(given, queries).value for seed in (0, 1))
    assert abs(float(Z.mean())) < 5 / 2500**0.5
    assert abs(float(Z.var()) - 1) < 5 * (2 / 2500) ** 0.5
    assert abs(float((Z.abs() < 0.6744897501960817).double().mean()) - 0.5) < 5 * 0.5 / 2500**0.5
    for pair in ((Z[1:], Z[:-1]), (Z[:, 1:], Z[:, :-1]), (Z, Z.T), (Z, other)):
        assert abs(float(torch.corrcoef(torch.stack([x.flatten() for x in pair]))[0, 1])) < 5 / 2400**0.5
    unnamed = {k: v for k, v in queries.items() if k != "idx"}
    assert torch.equal(RandomScores().scores(given, unnamed).value, Z)


WITHOUT_RUN = {
    TracIn(): "TracIn follows the training run, and this model comes without one.\n"
    f"  {HOW_TO_RECORD}; or use a method that looks at the final weights alone, such as GradientDot.",
    OneStep(): "OneStep takes its step from the learning rates of the training run, and this model comes without one.\n"
    f"  Give rate, such as the learning rate times the number of steps. {HOW_TO_RECORD}, to have it computed.",
    InfluenceFunction("lissa"): "lissa takes its damping from the learning rates of the training run, and this model "
    "comes without one.\n  Give damping, in nats per squared parameter (0 at a minimum of J). "
    f"{HOW_TO_RECORD}, to have it computed.",
}


@pytest.mark.parametrize("method", WITHOUT_RUN, ids=lambda m: m.name)
def test_a_run_that_nobody_recorded(method):
    problem = made(Logistic)
    with pytest.raises(InputError) as caught:
        method.scores(TrainedModel(problem.objective(), problem.theta), problem.queries)
    assert str(caught.value) == WITHOUT_RUN[method]


@pytest.mark.parametrize("method", [OneStep(), InfluenceFunction("gauss_newton")], ids=lambda m: m.name)
def test_a_run_that_went_nowhere(method):
    given = trained(Logistic)
    with pytest.raises(InputError) as caught:
        method.scores(replace(given, run=replace(given.run, rates=0 * RATES)), made(Logistic).queries)
    assert str(caught.value) == (
        "The learning rates of the recorded run's 6 steps come to 0 in all: nothing was trained.\n"
        "  Give the rate or the damping itself, or record a run that trains."
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TracIn(0), "TracIn needs checkpoints >= 1 (or null, for all that were saved), got 0."),
        (lambda: OneStep(-1.0), "OneStep needs a finite rate > 0 (or null), got -1.0."),
        (lambda: OneStep(max_bytes=0), "OneStep needs max_bytes >= 1, got 0."),
    ],
)
def test_settings(make, message):
    with pytest.raises(InputError) as caught:
        make()
    assert str(caught.value) == message


def test_momentum_lengthens_the_step():
    value = OneStep().scores(trained(Logistic, momentum=0.5), made(Logistic).queries).value
    torch.testing.assert_close(value, stepped(2 * TIME)(made(Logistic)), **CLOSE)
