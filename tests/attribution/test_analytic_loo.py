"""Self-influence with its certificate, losses of samples left out, and groups: dense algebra and exact refits."""

import re
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from ifloo.attribution import InfluenceEngine, certified_self, left_out_losses
from ifloo.attribution.scores import SelfInfluence
from ifloo.curvature import Damped, LinearHead
from ifloo.errors import InputError, WorkError
from ifloo.solvers import CG, Cholesky, SolveError
from tests.curvature.heads import HEADS, N
from tests.problems import Attention, Logistic, Ridge

# Solves to 1e-13 of systems of condition below 1e3, and values below 10.
CLOSE = {"rtol": 1e-9, "atol": 1e-12}
ONCE = [c for c in HEADS if c.name not in ("tokens", "softmax, weighted samples", "softmax, free bias")]
case_of = {case.name: case for case in HEADS}


def engine_of(problem, solver=None, damping=0.0, head=False, size=7, **how):
    engine = problem.engine(solver, size, **how)
    curvature = LinearHead(engine.objective, problem.theta) if head else engine.curvature
    return replace(engine, curvature=Damped(curvature, damping) if damping else curvature)


def dense(problem, damping=0.0):
    G = problem.gradients(problem.theta, problem.x, problem.labels)
    H = problem.dense_hessian() + damping * torch.eye(len(problem.theta), dtype=G.dtype)
    return (torch.linalg.solve(H, G.T).T * G).sum(1) / problem.n


PATHS = {"factor of a head": (Logistic, True), "factor": (Ridge, False), "products": (Logistic, False)}


@pytest.mark.parametrize("damping", [0.0, 0.3])
@pytest.mark.parametrize("path", PATHS)
def test_certified_self_is_the_dense_formula(path, damping):
    kind, head = PATHS[path]
    problem, told = kind.make(), []
    solver, sizes = (CG(1e-13), (1000,)) if path == "products" else (Cholesky(), (1, 7, 1000))
    for size in sizes:
        found = certified_self(engine_of(problem, solver, damping, head, size), lambda *far: told.append(far))
        torch.testing.assert_close(found.value, dense(problem, damping), **CLOSE)
        assert found.residual.max() < 1e-12
        assert found.undamped_residual.shape == (problem.n,)
    assert told[-1] == (problem.n, problem.n)
    order = torch.randperm(problem.n, generator=torch.Generator().manual_seed(0))
    moved = certified_self(engine_of(problem, solver, damping, head, 25, order=order))
    torch.testing.assert_close(moved.value, dense(problem, damping)[order], **CLOSE)


def test_it_is_the_score_of_each_sample_on_itself():
    problem = Logistic.make()
    engine = engine_of(problem)
    own = engine.scores({"x": problem.x, "labels": problem.labels, "idx": torch.arange(problem.n)}).value.diagonal()
    torch.testing.assert_close(certified_self(engine).value, -own, **CLOSE)


@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_no_value_is_further_off_than_its_bound(damping):
    problem = Logistic.make()
    found = certified_self(engine_of(problem, CG(0.1), damping))
    truth, H = dense(problem, damping), problem.dense_hessian()
    assert found.error_bound is not None
    off = (found.value - truth).abs()
    assert (off <= found.error_bound).all()
    assert off.max() > 1e-6  # a poor solve, so that there is something to bound
    assert (found.residual <= 0.1).all()
    if damping:
        G = problem.gradients(problem.theta, problem.x, problem.labels)
        exact = torch.linalg.solve(H + damping * torch.eye(len(H), dtype=H.dtype), G.T).T
        undamped = certified_self(engine_of(problem, Cholesky(), damping)).undamped_residual
        torch.testing.assert_close(undamped, (G - exact @ H).norm(dim=1) / G.norm(dim=1), **CLOSE)
    unknown = replace(engine_of(problem, CG(0.1), damping), strong_convexity=None)
    assert certified_self(unknown).error_bound is None


def test_no_minimum_no_self_influence():
    with pytest.raises(SolveError, match=re.escape("The curvature is not positive definite: its smallest eigenvalue")):
        certified_self(engine_of(Attention.make()))


def head_engine(case, damping=0.0, size=7):
    head = LinearHead(case.objective(size), case.theta)
    return head, InfluenceEngine(head.objective, case.theta, Damped(head, damping) if damping else head, Cholesky())


def left_out(case, damping=0.0, size=7, tick=lambda done, total: None):
    head, engine = head_engine(case, damping, size)
    return left_out_losses(head, engine.prepared, certified_self(engine), tick)


def one_step(case, damping=0.0):
    """Loss of each sample at θ + (1/n) (H + δI − ∇²ℓ_i/n)⁻¹ ∇ℓ_i, a dense solve each."""
    G, H = case.gradients(case.x, case.y), case.hessian() + damping * torch.eye(len(case.theta), dtype=torch.float64)
    steps = [torch.linalg.solve(H - case.sample_hessian(i) / N, G[i]) / N for i in range(N)]
    return torch.stack([case.losses_at(case.theta + d, case.x, case.y)[i] for i, d in enumerate(steps)])


@pytest.mark.parametrize("case", ONCE, ids=str)
def test_losses_left_out_are_those_of_one_newton_step_each(case):
    told = []
    for size in (1, 7, 1000):
        found = left_out(case, size=size, tick=lambda *far: told.append(far))
        torch.testing.assert_close(found, one_step(case), **CLOSE)
    assert told[-1] == (N, N)


def test_losses_left_out_with_damping():
    case = case_of["softmax, bias"]
    torch.testing.assert_close(left_out(case, damping=0.3), one_step(case, 0.3), **CLOSE)


def test_least_squares_left_out_is_exact():
    """Quadratic J at its minimum: the loss is that of a refit at weight 0, ½ |r_i / (1 − h_i)|² (Allen's PRESS)."""
    case = case_of["least squares"]
    gradient = torch.autograd.functional.jacobian(case.value, case.theta)
    minimum = case.theta - torch.linalg.solve(case.hessian(), gradient)
    head = LinearHead(case.objective(), minimum)
    engine = InfluenceEngine(head.objective, minimum, head, Cholesky())
    found = left_out_losses(head, engine.prepared, certified_self(engine))
    H, refits = case.hessian(), []
    for i in range(N):
        own = case.sample_hessian(i) / N
        slope = torch.autograd.functional.jacobian(
            lambda t, i=i: case.value(t) - case.losses_at(t, case.x, case.y)[i] / N, torch.zeros_like(minimum)
        )
        refits.append(case.losses_at(-torch.linalg.solve(H - own, slope), case.x, case.y)[i])
    torch.testing.assert_close(found, torch.stack(refits), **CLOSE)


def test_copies_of_the_data_quarter_the_error_of_a_refit_left_out():
    """Logistic loss: with twice the samples a removal is half the step, and one Newton step is off by a quarter."""
    small, errors, first = Logistic.make(), [], []
    for copies in (4, 8, 16, 32):
        problem = replace(small, x=small.x.repeat(copies, 1), labels=small.labels.repeat(copies))
        weights = torch.ones(problem.n, dtype=torch.float64)
        weights[0] = 0
        refit = problem.losses_at(problem.fit(weights, small.theta), problem.x[:1], problem.labels[:1])[0]
        head = LinearHead(problem.objective(1000), small.theta)
        engine = InfluenceEngine(head.objective, small.theta, head, Cholesky())
        own = certified_self(engine)
        loss = problem.losses_at(small.theta, problem.x[:1], problem.labels[:1])[0]
        errors.append(float((left_out_losses(head, engine.prepared, own)[0] - refit).abs()))
        first.append(float((loss + own.value[0] - refit).abs()))
    for off in (errors, first):
        assert all(3.6 < a / b < 4.4 for a, b in pairwise(off)), off
    assert all(a < b for a, b in zip(errors, first, strict=True))


def test_sequences_are_refused():
    with pytest.raises(InputError) as caught:
        left_out(case_of["tokens"])
    assert str(caught.value) == (
        "Losses of samples left out are for one position for each sample; here each has 4.\n"
        "  Rank by self-influence or loss."
    )


def test_a_sample_without_which_there_is_no_minimum_is_named():
    """Two samples on an axis each and almost no penalty: without one of them its axis is flat."""
    torch.manual_seed(0)
    case = case_of["least squares"]
    x = torch.zeros_like(case.x)
    x[:, 0] = 1
    x[3, 1] = 1
    module = case_of["least squares"].module
    flat = replace(case, x=x)
    before = module.penalty
    module.penalty = lambda: 1e-9 * module.head.weight.square().sum() + 0.5e-9 * 2 * module.head.bias.square().sum()
    try:
        head, engine = head_engine(flat)
        own = certified_self(engine)
        with pytest.raises(SolveError) as caught:
            left_out_losses(head, engine.prepared, own)
    finally:
        module.penalty = before
    assert str(caught.value) == (
        "Without one of the samples the curvature has no minimum left: it carries 1 of it in some direction.\n"
        "  Raise the penalty or attribution.damping; self-influence and loss need no such minimum."
    )


def test_an_inverse_that_disagrees_with_the_solves_is_refused():
    case = case_of["softmax"]
    head, engine = head_engine(case)
    own = certified_self(engine)
    other = SelfInfluence(own.value * 1.01, own.residual, own.undamped_residual, None)
    with pytest.raises(WorkError) as caught:
        left_out_losses(head, engine.prepared, other)
    assert str(caught.value) == (
        "The inverse of the curvature gives self-influences that differ by 9.9e-03 from those of the solves: it is too "
        "ill-conditioned for torch.float64.\n  Use attribution.dtype float64, or a larger penalty."
    )
