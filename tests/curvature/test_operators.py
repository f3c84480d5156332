"""Every operator under every law, and what operators add to it."""

from dataclasses import replace

import pytest
import torch

from ifloo.curvature import (
    BatchSampler,
    Damped,
    Definite,
    GaussNewton,
    Hessian,
    LinearHead,
    LinearOperator,
    SampleMeanOperator,
    StochasticOperator,
    Structure,
    can_be_sampled,
    stochastic,
)
from ifloo.errors import InputError
from ifloo.objective import FunctionalLosses, Objective, Subsample, differentiable_kernels
from ifloo.params import ParamSpace
from ifloo.solvers import LiSSA
from tests.cases import OPERATORS, Matrix, Products, Structured, problem_of
from tests.curvature.heads import HEADS
from tests.laws import OPERATOR_LAWS
from tests.problems import weights_with


@pytest.fixture(autouse=True)
def _kernels():
    """As in the engine: fused attention has no second derivative."""
    with differentiable_kernels():
        yield


@pytest.mark.parametrize("law", OPERATOR_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("case", OPERATORS, ids=str)
def test_law(case, law):
    law(case)


@pytest.mark.parametrize("problem", ["logistic", "attention"])
@pytest.mark.parametrize("kind", [Hessian, GaussNewton])
def test_each_draw_is_the_curvature_of_its_own_samples(problem, kind):
    problem = problem_of(problem)
    A = Damped(kind(problem.objective(), problem.theta), 0.2)
    ids = problem.data().draw(6, torch.Generator().manual_seed(8)).ids.reshape(3, 2)
    draw = A.sampler.draw(3, 2, torch.Generator().manual_seed(8))
    V = torch.randn(3, 4, A.size, dtype=A.dtype, generator=torch.Generator().manual_seed(9))
    ours = draw.matmat(V)
    for j in range(3):
        mine = kind(problem.objective(), problem.theta)
        parts = [Damped(type(mine)(_only(problem, int(i)), problem.theta), 0.2).matmat(V[j]) for i in ids[j]]
        torch.testing.assert_close(ours[j], sum(parts) / 2, rtol=1e-12, atol=1e-12)  # re-associated sums


def _only(problem, i):
    """J over sample i alone: its mean has n = 1."""
    objective = problem.objective()
    return replace(objective, data=Subsample(torch.tensor([i]), objective.data.sample(torch.tensor([i]))))


def test_gauss_newton_is_the_hessian_where_outputs_are_linear():
    problem = problem_of("logistic")
    torch.testing.assert_close(problem.dense_gauss_newton(), problem.dense_hessian(), rtol=0, atol=1e-14)


def test_gauss_newton_stays_positive_where_the_hessian_is_not():
    problem = problem_of("attention")
    assert torch.linalg.eigvalsh(problem.dense_hessian())[0] < -0.01
    assert torch.linalg.eigvalsh(problem.dense_gauss_newton())[0] >= problem.penalty - 1e-12


def test_weights_enter_the_curvature():
    problem = problem_of("logistic")
    objective = problem.objective().reweighted(weights_with([2, 5], [0.0, 3.0]))
    weights = torch.ones(problem.n, dtype=torch.float64)
    weights[2], weights[5] = 0.0, 3.0
    truth = torch.autograd.functional.hessian(lambda t: problem.value(t, weights), problem.theta)
    identity = torch.eye(len(truth), dtype=torch.float64)
    for kind in (Hessian, GaussNewton):
        torch.testing.assert_close(kind(objective, problem.theta).matmat(identity), truth, rtol=1e-12, atol=1e-12)


def test_damping_twice_is_one_damping_of_the_undamped_operator():
    A = Damped(Damped(Matrix(torch.eye(2, dtype=torch.float64)), 0.25), 0.5)
    assert (A.damping, type(A.base)) == (0.75, Matrix)


def test_damping_makes_a_semi_definite_operator_definite():
    problem = problem_of("logistic")
    semi = GaussNewton(problem.objective(), problem.theta)
    assert Damped(semi, 0.1).definite is Definite.POSITIVE
    assert Damped(semi, 0.0).definite is Definite.SEMI
    assert Damped(Hessian(problem.objective(), problem.theta), 0.1).definite is Definite.UNKNOWN


@pytest.mark.parametrize("damping", [-0.1, float("nan"), float("inf")])
def test_damping_out_of_range(damping):
    with pytest.raises(InputError) as caught:
        Damped(Matrix(torch.eye(2)), damping)
    assert str(caught.value) == (
        f"Damping must be a finite number >= 0, got {damping}.\n"
        "  It is added to the curvature (H + damping·I); 0 gives the influence of the objective as it is."
    )


def test_gauss_newton_needs_outputs_apart_from_the_loss():
    class LossOnly(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(2))

        def sample_losses(self, batch):
            return batch["x"] @ self.weight

        def penalty(self):
            return torch.zeros(())

    module = LossOnly()
    objective = Objective(FunctionalLosses(module, ParamSpace.of(module)), problem_of("ridge").data())
    with pytest.raises(InputError) as caught:
        GaussNewton(objective, torch.zeros(2))
    assert str(caught.value) == (
        "Gauss-Newton needs the model's outputs apart from its loss; LossOnly defines no `outputs(batch)` and "
        "`output_losses(outputs, batch)`.\n  Define both, or use curvature Hessian."
    )


def test_an_operator_of_products_cannot_be_drawn_from_damped_or_not():
    A = Products(torch.eye(2, dtype=torch.float64))
    assert not can_be_sampled(A)
    assert not can_be_sampled(Damped(A, 0.1))
    assert can_be_sampled(Damped(Matrix(A.matrix), 0.1))
    with pytest.raises(InputError) as caught:
        stochastic(Damped(A, 0.1))
    assert str(caught.value) == (
        "This solver draws samples of its operator; Products cannot be sampled.\n"
        "  Use Hessian or GaussNewton, or a solver that needs products only (CG, Cholesky)."
    )


def test_a_sample_of_the_data_cannot_be_sampled_again():
    problem = problem_of("ridge")
    few = Hessian(problem.objective(), problem.theta).sampler.subsampled(4, torch.Generator().manual_seed(0))
    with pytest.raises(InputError) as caught:
        few.sampler.draw(1, 1, torch.Generator())
    assert str(caught.value) == "Samples can be drawn from the whole training data only, not from a sample of them."


@pytest.mark.parametrize("shape", [(), (3,), (2, 1), (1, 2, 2)])
def test_vectors_of_another_shape_are_refused_with_the_sizes(shape):
    with pytest.raises(InputError) as caught:
        Damped(Matrix(torch.eye(2)), 0.1) @ torch.ones(shape)
    assert str(caught.value) == (
        f"Damped @ v takes v of shape [2] or [k, 2], got {list(shape)}.\n"
        "  Give one vector of all parameters, or one vector a row; `ParamSpace.flatten` makes them of tensors by name."
    )


def test_damping_keeps_what_an_operator_can_do_and_adds_nothing():
    eye = torch.eye(3, dtype=torch.float64)
    plain = Damped(Products(eye), 0.5)
    assert (plain.sampler, plain.structure) == (None, Structure())
    known = Damped(Structured(eye), 0.5)
    assert isinstance(known.sampler, BatchSampler)
    assert known.structure.cost == Structured(eye).structure.cost
    assert known.structure.kronecker().diagonal == pytest.approx(0.5, rel=1e-15)
    head = LinearHead(HEADS[0].objective(), HEADS[0].theta)
    assert not isinstance(Damped(head, 0.5).sampler, BatchSampler)
    drawn = Damped(head, 0.5).sampler.subsampled(4, torch.Generator().manual_seed(0))
    assert (type(drawn.base), drawn.damping, drawn.base.n) == (LinearHead, 0.5, 4)


class Own(StochasticOperator):
    """An operator as they were written before there were samplers."""

    definite, size, dtype, device = Definite.UNKNOWN, 2, torch.float64, torch.device("cpu")

    def matmat(self, V):
        return 2.0 * V

    def subsampled(self, rows, generator):
        return self

    def draw(self, repeats, batch, generator):
        return Matrix(2.0 * torch.eye(2, dtype=torch.float64)).sampler.draw(repeats, batch, generator)


def test_an_operator_that_is_its_own_sampler():
    assert can_be_sampled(Own())
    assert stochastic(Own()).subsampled(1, torch.Generator()).size == 2
    B = torch.ones(1, 2, dtype=torch.float64)
    solution = LiSSA(depth=50, repeats=2, scale=4.0).prepare(Damped(Own(), 1.0)).solve(B)
    torch.testing.assert_close(solution.value, B / 3, rtol=1e-12, atol=0)  # (1 − 3/4)^50 is below rounding


@pytest.mark.parametrize("hook", ["core", "cost", "has_kronecker", "is_dense", "kronecker", "streamed"])
def test_a_former_hook_without_a_structure_is_refused_when_the_class_is_defined(hook):
    for base in (LinearOperator, SampleMeanOperator, Hessian):
        with pytest.raises(InputError, match=rf"Own defines {hook}, .*\n.*`structure`"):
            type("Own", (base,), {hook: lambda self: None})


def test_a_class_that_states_its_structure_may_use_any_name():
    own = type("Own", (LinearOperator,), {"core": lambda self: None, "structure": property(lambda self: Structure())})
    assert issubclass(type("Further", (own,), {"core": lambda self: 1}), LinearOperator)
    assert issubclass(type("OwnHead", (LinearHead,), {"streamed": lambda self, V: V}), LinearHead)
