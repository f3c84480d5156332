"""Mistakes that attribution libraries ship with, each pinned by name; each would silently give another number."""

import pytest
import torch
from torch.nn import functional as F

from ifloo.attribution import InfluenceEngine
from ifloo.curvature import Damped, Hessian, dense
from ifloo.objective import differentiable_kernels
from ifloo.solvers import CG, LiSSA, SolveError
from tests.cases import Matrix
from tests.problems import Attention, Logistic


@pytest.fixture(scope="module")
def problem():
    return Logistic.make(penalty=0.1)


@pytest.fixture(scope="module")
def hessian(problem):
    return Hessian(problem.objective(), problem.theta)


@pytest.fixture(scope="module")
def b(problem):
    return problem.gradients(problem.theta, problem.queries["x"], problem.queries["labels"])


def test_lissa_damp_enters_times_scale(problem, hessian, b):
    """`h <- v + (1 − damp) h − H h / scale` (Koh & Liang's code) converges to (H + damp·scale·I)⁻¹ v, not to
    (H + damp·I)⁻¹ v. ifloo says so: `Damped(H, damp * scale)` is the identical iteration, step by step.
    """
    damp, scale, depth, seed = 0.05, 6.0, 40, 3
    ours = LiSSA(depth=depth, repeats=1, batch=4, scale=scale, seed=seed).prepare(Damped(hessian, damp * scale))
    generator = torch.Generator().manual_seed(seed)
    h = b.clone()
    for _ in range(depth):
        ids = problem.data().draw(4, generator).ids
        h = b + (1 - damp) * h - h @ problem.dense_hessian(ids=ids) / scale
    # the same numbers added in another order, 40 times
    torch.testing.assert_close(ours.solve(b).value, h / scale, rtol=0, atol=1e-13)
    damped = problem.dense_hessian() + damp * scale * torch.eye(12, dtype=b.dtype)
    # without the noise of draws: (1 − (0.1 + 0.3) / 6)^500 < 2e-15
    settled = LiSSA(depth=500, repeats=1, scale=scale).prepare(Matrix(damped)).solve(b)
    torch.testing.assert_close(settled.value, torch.linalg.solve(damped, b.T).T, rtol=0, atol=1e-12)


def test_lissa_averages_over_repeats_and_their_spread_is_its_error(problem, hessian, b):
    """A sum over repeats (or the last one alone) is off by a factor; the mean of r recursions has error spread / √r."""
    damped = Damped(
        hessian, 0.5
    )  # the recursion then forgets its start within 40 steps: 0.8^40 < 2e-4, noise 100 times that
    exact = torch.linalg.solve(dense(damped), b.T).T
    runs = [LiSSA(depth=40, repeats=32, batch=8, seed=k).prepare(damped).solve(b) for k in range(4)]
    # Mean square of error / standard error, 1 when honest. Some 3 independent numbers a run, 4 runs: 1 ± 0.4.
    honesty = torch.stack([((r.value - exact) / r.standard_error).square().mean() for r in runs]).mean()
    assert 0.2 < float(honesty) < 2.0
    few = LiSSA(depth=40, repeats=8, batch=8).prepare(damped).solve(b)
    ratio = float(few.standard_error.norm() / runs[0].standard_error.norm())
    assert ratio == pytest.approx(2, rel=0.4)  # √(32 / 8); a standard deviation from 8 draws is good to 25 %


def test_the_penalty_is_in_the_curvature(problem, hessian):
    H = dense(hessian)
    theta = problem.theta
    bare = torch.autograd.functional.hessian(lambda t: problem.losses_at(t, problem.x, problem.labels).mean(), theta)
    # once: not 0, not n times, not once a batch
    torch.testing.assert_close(H - bare, 0.1 * torch.eye(len(H), dtype=H.dtype), rtol=0, atol=1e-14)


def test_one_over_n(problem):
    """Doubling every sample halves each one's score: n is the number of samples, not of batches."""
    twice = Logistic(problem.module, problem.x.repeat(2, 1), problem.labels.repeat(2), problem.queries, problem.penalty)
    once = problem.engine().scores(problem.queries).value
    torch.testing.assert_close(
        twice.engine().scores(problem.queries).value, torch.cat([once, once], 1) / 2, rtol=0, atol=1e-14
    )


def test_sign_weight_on_a_copy_of_the_query_helps(problem):
    """Adding weight to a sample lowers its own loss: a negative score is helpful."""
    value = problem.engine().scores({"x": problem.x, "labels": problem.labels}).value
    assert (value.diagonal() < 0).all()
    weights = torch.ones(problem.n, dtype=torch.float64)
    weights[4] = 1.1
    refit = problem.fit(weights, problem.theta)
    before, after = (problem.losses_at(t, problem.x, problem.labels)[4] for t in (problem.theta, refit))
    assert after < before


def test_not_a_sum_of_inverses_of_batches(problem, hessian, b):
    """Σ_batches (H_batch)⁻¹ b is not H⁻¹ b; with batches of 7 it is far from it, and ours is not."""
    exact = torch.linalg.solve(problem.dense_hessian(), b.T).T
    ours = CG(rtol=1e-13).prepare(hessian).solve(b).value
    batches = torch.arange(problem.n).split(7)
    wrong = torch.stack([torch.linalg.solve(problem.dense_hessian(ids=i), b.T).T for i in batches]).mean(0)
    assert float((wrong - exact).norm() / exact.norm()) > 0.05
    assert float((ours - exact).norm() / exact.norm()) < 1e-12


def test_the_query_loss_has_no_penalty(problem, hessian, b):
    """∇L_t must not contain λθ: else every query's scores move by the same wrong vector."""
    solved = problem.engine().directions(problem.queries).value
    torch.testing.assert_close(solved @ problem.dense_hessian(), b, rtol=0, atol=1e-13)
    shifted = b + problem.penalty * problem.theta
    assert float((shifted - b).norm() / b.norm()) > 0.05


def test_indefinite_curvature_is_not_solved_silently():
    """At an untrained point H has negative eigenvalues: plain recursions return a number, the certificate refuses."""
    problem = Attention.make()
    with pytest.raises(SolveError, match="CG met non-positive curvature"):
        problem.engine(CG()).scores(problem.queries)


def _one_block(x, w, g):
    return F.cross_entropy(F.layer_norm(x @ w.reshape(4, 4), (4,), g), torch.arange(len(x)) % 4)


def test_hessian_products_through_layer_norm():
    """torch.func: grad of jvp is silently wrong through F.layer_norm (2.13); vjp of grad is right.

    Pinned to notice the day torch mends it, and so that no one "simplifies" the product.
    """
    draw = torch.Generator().manual_seed(0)
    x, theta, v = (torch.randn(*s, generator=draw, dtype=torch.float64) for s in ((6, 4), (20,), (20,)))

    def f(t):
        return _one_block(x, t[:16], t[16:])

    truth = torch.autograd.functional.hessian(f, theta) @ v
    (right,) = torch.func.vjp(torch.func.grad(f), theta)[1](v)
    torch.testing.assert_close(right, truth, rtol=1e-12, atol=1e-13)  # rounding
    wrong = torch.func.grad(lambda t: torch.func.jvp(f, (t,), (v,))[1])(theta)
    if torch.__version__.startswith("2.13"):
        assert float((wrong - truth).norm() / truth.norm()) > 1e-3


def test_hessian_products_against_finite_differences_of_the_gradient():
    """The whole chain (layer_norm, attention, batches, penalty): central differences converge at order ε²."""
    problem = Attention.make()
    objective = problem.objective()
    v = torch.randn(problem.space.size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with differentiable_kernels():
        product = Hessian(objective, problem.theta).matmat(v[None])[0]
        errors = []
        for eps in (4e-3, 2e-3, 1e-3):
            up, down = (objective.gradient(problem.theta + s * eps * v) for s in (1, -1))
            errors.append(float(((up - down) / (2 * eps) - product).norm()))
    assert 3.8 < errors[0] / errors[1] < 4.2
    assert 3.8 < errors[1] / errors[2] < 4.2


def test_forward_and_reverse_agree_on_scores_through_attention():
    """Scores come from jvp, the truth from backward passes."""
    problem = Attention.make()
    objective = problem.objective()
    engine = InfluenceEngine(objective, problem.theta, Damped(Hessian(objective, problem.theta), 2.0), CG(rtol=1e-13))
    scores = engine.scores(problem.queries).value
    with differentiable_kernels():
        training = problem.gradients(problem.theta, problem.x, problem.labels)
        queries = problem.gradients(problem.theta, problem.queries["x"], problem.queries["labels"])
        H = problem.dense_hessian() + 2.0 * torch.eye(problem.space.size, dtype=torch.float64)
    exact = -queries @ torch.linalg.solve(H, training.T) / problem.n
    torch.testing.assert_close(scores, exact, rtol=0, atol=1e-12)
