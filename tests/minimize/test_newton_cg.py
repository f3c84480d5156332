"""The last steps of a convex fit."""

import re

import pytest
import torch

from ifloo.errors import WorkError
from ifloo.minimize.newton_cg import NewtonSystem, newton_cg
from ifloo.objective import FunctionalLosses, Objective, SampleWeights, TrainingData, differentiable_kernels
from ifloo.params import ParamSpace
from tests.problems import Attention, Logistic, Ridge


def _in_32_bits():
    return NewtonSystem(data=TrainingData(Logistic.make().loader(), torch.device("cpu"), torch.float32))


@pytest.mark.parametrize(
    "inner", [None, NewtonSystem(keep_graph=False), _in_32_bits()], ids=["plain", "anew", "32 bits"]
)
def test_it_ends_at_the_minimum_of_dense_newton(inner):
    problem = Logistic.make()
    minimum = newton_cg(problem.objective(), torch.zeros_like(problem.theta), 1e-12, inner=inner)
    # ‖θ − θ̂‖ <= ‖∇J‖ / λ = 5e-11
    torch.testing.assert_close(minimum.theta, problem.theta, rtol=0, atol=5e-11)
    assert minimum.value == pytest.approx(float(problem.value(problem.theta)), abs=1e-14)
    assert minimum.grad_norm <= 1e-12
    assert minimum.products > minimum.steps > 1


def test_weighted_ridge_in_closed_form():
    ridge = Ridge.make()
    objective = ridge.objective().reweighted(SampleWeights.removing([4, 9], "drop", 40))
    weights = torch.full((40,), 40 / 38, dtype=torch.float64)
    weights[[4, 9]] = 0.0
    minimum = newton_cg(objective, ridge.theta, 1e-12)
    torch.testing.assert_close(minimum.theta, ridge.fit(weights), rtol=0, atol=1e-11)  # 1e-12 / λ


def test_at_the_minimum_it_takes_no_step():
    problem = Logistic.make()
    minimum = newton_cg(problem.objective(), problem.theta, 1e-10)
    assert (minimum.steps, minimum.products) == (0, 0)
    assert torch.equal(minimum.theta, problem.theta)


def test_out_of_steps():
    problem = Logistic.make()
    with pytest.raises(WorkError) as caught:
        newton_cg(problem.objective(), torch.zeros_like(problem.theta), 1e-12, max_steps=1)
    assert re.fullmatch(
        r"Newton-CG ended at \|grad J\| = \d\.\d\de-0\d after 1 steps, above the tolerance of 1\.0e-12: all 1 "
        r"steps of finish\.max_steps are taken \(\|grad J\| was \d\.\d\de-0\d at the start\)\.",
        str(caught.value),
    )


def test_below_the_rounding_of_32_bits():
    problem = Logistic.make()
    module = type(problem.module)(num_features=4, num_classes=3, l2_reg=0.02, dtype="float32")
    space = ParamSpace.of(module)
    data = TrainingData(problem.loader(), space.device, space.dtype)
    objective = Objective(FunctionalLosses(module, space), data)
    with pytest.raises(WorkError) as caught:
        newton_cg(objective, torch.zeros(12), 1e-11)
    assert re.fullmatch(
        r"Newton-CG ended at \|grad J\| = \d\.\d\de-\d\d after \d+ steps, above the tolerance of 1\.0e-11: 32-bit "
        r"rounding of "
        r"the gradient sets this limit; raise the tolerance or train in float64\.",
        str(caught.value),
    )
    assert newton_cg(objective, torch.zeros(12), 3e-6).grad_norm <= 3e-6  # what NewtonFinish asks of float32


def test_negative_curvature_is_no_direction():
    problem = Attention.make()
    met = r"^A Newton step has no direction: CG met non-positive curvature \(-"
    with differentiable_kernels(), pytest.raises(WorkError, match=met):
        newton_cg(problem.objective(), problem.theta, 1e-10)
