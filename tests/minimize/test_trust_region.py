"""Newton steps in a trust region: one against dense algebra, many to minima that lie past negative curvature."""

import re

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ifloo.errors import WorkError
from ifloo.minimize.newton_cg import NewtonSystem
from ifloo.minimize.trust_region import steihaug, trust_region
from ifloo.models import SampleLossModule
from ifloo.objective import Objective, SampleWeights, TrainingData, differentiable_kernels
from ifloo.refit import NewtonFinish, Refitter, TrainerSettings
from ifloo.solvers import Nystrom
from tests.problems import Attention, Logistic

P = 12
draw = torch.Generator().manual_seed(5)
ROTATION = torch.linalg.qr(torch.randn(P, P, generator=draw, dtype=torch.float64)).Q
GRADIENT = torch.randn(P, generator=draw, dtype=torch.float64)
ROOT = torch.randn(P, P, generator=draw, dtype=torch.float64)
PRECONDITIONERS = {"none": torch.eye(P, dtype=torch.float64), "dense": ROOT @ ROOT.T + torch.eye(P)}

each_preconditioner = pytest.mark.parametrize("inverse", PRECONDITIONERS.values(), ids=PRECONDITIONERS)


def with_eigenvalues(*lowest: float) -> torch.Tensor:
    eigenvalues = torch.linspace(1.0, 4.0, P, dtype=torch.float64)
    eigenvalues[: len(lowest)] = torch.tensor(lowest, dtype=torch.float64)
    return ROTATION @ torch.diag(eigenvalues) @ ROTATION.T


def stepped(H, inverse, radius, rtol=1e-12):
    return steihaug(lambda v: H @ v, lambda r: inverse @ r, GRADIENT, radius, rtol)


def model_at(H, s):
    return float(GRADIENT @ s + 0.5 * s @ H @ s)


def length(inverse, s):
    return float(s @ torch.linalg.solve(inverse, s)) ** 0.5


@each_preconditioner
def test_a_step_inside_the_region_is_newtons(inverse):
    H = with_eigenvalues(0.5)
    step = stepped(H, inverse, float("inf"))
    newton = -torch.linalg.solve(H, GRADIENT)
    torch.testing.assert_close(step.value, newton, rtol=0, atol=1e-10)  # residual 1e-12 ‖g‖ over an eigenvalue of 0.5
    assert (step.inside, step.negative) == (True, False)
    assert step.decrease == pytest.approx(0.5 * float(-GRADIENT @ newton), rel=1e-12)
    assert step.length == pytest.approx(length(inverse, newton), rel=1e-10)


@each_preconditioner
def test_a_step_to_the_boundary_ends_on_it(inverse):
    H = with_eigenvalues(0.5)
    radius = 0.6 * length(inverse, torch.linalg.solve(H, GRADIENT))
    step = stepped(H, inverse, radius)
    assert (step.inside, step.negative) == (False, False)
    assert step.length == pytest.approx(radius, rel=1e-12)
    assert length(inverse, step.value) == pytest.approx(radius, rel=1e-10)
    assert step.decrease == pytest.approx(-model_at(H, step.value), rel=1e-12)


@each_preconditioner
def test_a_small_region_allows_the_steepest_descent_alone(inverse):
    radius, steepest = 1e-6, inverse @ GRADIENT
    step = stepped(with_eigenvalues(0.5), inverse, radius)
    torch.testing.assert_close(step.value, -radius * steepest / length(inverse, steepest), rtol=1e-10, atol=0)
    assert step.products == 1


@each_preconditioner
@pytest.mark.parametrize("radius", [float("inf"), 3.0])
def test_negative_curvature_is_followed_to_the_boundary(inverse, radius):
    H = with_eigenvalues(-2.0, -0.5)
    step = stepped(H, inverse, radius)
    assert (step.inside, step.negative) == (False, True)
    if radius < float("inf"):
        assert length(inverse, step.value) == pytest.approx(radius, rel=1e-10)
    assert step.length == pytest.approx(length(inverse, step.value), rel=1e-10)
    assert step.decrease == pytest.approx(-model_at(H, step.value), rel=1e-10)
    # Never less than the best step along the steepest descent in the region (Cauchy's point).
    steepest = -inverse @ GRADIENT
    unit = steepest / length(inverse, steepest)
    alphas = torch.linspace(0, step.length, 1001, dtype=torch.float64)
    assert step.decrease >= max(-model_at(H, a * unit) for a in alphas)


@pytest.mark.parametrize("preconditioner", [None, Nystrom(rank=6)])
def test_where_j_is_convex_it_ends_at_the_minimum_of_dense_newton(preconditioner):
    problem = Logistic.make()
    start = torch.zeros_like(problem.theta)
    inner = NewtonSystem()
    if preconditioner:
        inner = NewtonSystem(preconditioner.prepare(inner.hessian(problem.objective(), start)))
    minimum = trust_region(problem.objective(), start, 1e-12, inner=inner)
    torch.testing.assert_close(minimum.theta, problem.theta, rtol=0, atol=5e-11)  # ‖θ − θ̂‖ <= ‖∇J‖ / λ
    assert minimum.value == pytest.approx(float(problem.value(problem.theta)), abs=1e-14)
    assert minimum.products > minimum.steps > 1


class Curved(SampleLossModule):
    """Two layers of tanh, whose optimizer takes no step."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
        for parameter in self.layers.parameters():
            nn.init.normal_(parameter, generator=generator)

    def sample_losses(self, batch):
        return (self.layers(batch[0])[:, 0] - batch[1]).square()

    def penalty(self):
        return 0.005 * torch.stack([p.square().sum() for p in self.parameters()]).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def samples():
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((20, 3), (20,)))
    return x, y, DataLoader(TensorDataset(x, y), batch_size=5)


def curved_losses(theta):
    """What `Curved` computes, by hand."""
    x, y, _ = samples()
    first, b, second, c = theta.split([12, 4, 4, 1])
    return (torch.tanh(x @ first.view(4, 3).T + b) @ second + c - y).square()


def curved_value(theta):
    return curved_losses(theta).mean() + 0.005 * theta @ theta


@pytest.fixture(scope="module")
def curved():
    """J, a start with negative curvature, and where the descent from it ends."""
    objective = Objective.of(Curved(), samples()[2])
    start = objective.losses.theta()
    assert float(torch.linalg.eigvalsh(torch.autograd.functional.hessian(curved_value, start))[0]) < -0.1
    return objective, start, trust_region(objective, start, 1e-11)


def test_past_negative_curvature_it_ends_at_a_strict_minimum(curved):
    _, start, minimum = curved
    gradient = torch.autograd.functional.jacobian(curved_value, minimum.theta)
    assert float(gradient.norm()) <= 2e-11  # the tolerance, and the rounding of another program
    assert float(torch.linalg.eigvalsh(torch.autograd.functional.hessian(curved_value, minimum.theta))[0]) > 1e-3
    assert minimum.value == pytest.approx(float(curved_value(minimum.theta)), rel=1e-14)
    assert minimum.value < float(curved_value(start))


def test_a_refit_from_the_minimum_follows_its_derivative(curved):
    """θ(w_i) = θ̂ − (w_i − 1)/n H⁻¹∇ℓ_i + second order: halving the step leaves a quarter of the difference."""
    objective, _, minimum = curved
    i, H = 4, torch.autograd.functional.hessian(curved_value, minimum.theta)
    gradient = torch.autograd.functional.jacobian(lambda t: curved_losses(t)[i], minimum.theta)
    derivative = -torch.linalg.solve(H, gradient) / objective.n
    missed = []
    for step in (1e-3, 5e-4):
        stepped_down = objective.reweighted(SampleWeights.stepped(i, 1 - step))
        moved = trust_region(stepped_down, minimum.theta, 1e-13).theta - minimum.theta
        missed.append(float((moved + step * derivative).norm()))
    assert missed[0] <= 0.01 * 1e-3 * float(derivative.norm())
    assert missed[0] / missed[1] == pytest.approx(4, rel=0.02)


def test_out_of_steps_in_negative_curvature():
    problem = Attention.make()
    with differentiable_kernels(), pytest.raises(WorkError) as caught:
        trust_region(problem.objective(), problem.theta, 1e-10, max_steps=1)
    assert re.fullmatch(
        r"Newton steps in a trust region ended at \|grad J\| = \d\.\d\de[+-]\d\d after 1 steps, above the "
        r"tolerance of 1\.0e-10: all 1 steps of finish\.max_steps are taken \(\|grad J\| was \d\.\d\de[+-]\d\d at the "
        r"start\); 1 of them met negative curvature\.",
        str(caught.value),
    )


def test_out_of_steps():
    problem = Logistic.make()
    with pytest.raises(WorkError) as caught:
        trust_region(problem.objective(), torch.zeros_like(problem.theta), 1e-12, max_steps=1)
    assert re.fullmatch(
        r"Newton steps in a trust region ended at \|grad J\| = \d\.\d\de-\d\d after 1 steps, above the tolerance of "
        r"1\.0e-12: "
        r"all 1 steps of finish\.max_steps are taken \(\|grad J\| was \d\.\d\de-\d\d at the start\)\.",
        str(caught.value),
    )


def test_below_the_rounding_of_32_bits():
    problem = Logistic.make()
    module = type(problem.module)(num_features=4, num_classes=3, l2_reg=0.02, dtype="float32")
    objective = Objective.of(module, problem.loader())
    with pytest.raises(WorkError) as caught:
        trust_region(objective, torch.zeros(12), 1e-11)
    assert re.fullmatch(
        r"Newton steps in a trust region ended at \|grad J\| = \d\.\d\de-\d\d after \d+ steps, above the tolerance "
        r"of 1\.0e-11: "
        r"32-bit rounding of the gradient sets this limit; raise the tolerance or train in float64\.",
        str(caught.value),
    )


def test_a_finish_where_j_is_not_convex():
    """From the first weights, where the curvature is negative and has no preconditioner, to the minimum downhill."""
    loader = samples()[2]
    finish = NewtonFinish("always", tolerance=1e-11, preconditioner=Nystrom(rank=4))
    refit = Refitter(Curved, lambda: loader, TrainerSettings(max_epochs=1, accelerator="cpu"), finish, seed=0).fit()
    assert refit.minimum.grad_norm <= 1e-11

    objective = Objective.of(Curved(), loader)
    expected = trust_region(objective, objective.losses.theta(), 1e-11).theta
    # Another preconditioner, so another way there: to the same point, as far as ‖∇J‖ over an eigenvalue > 0.01 tells.
    found = objective.losses.space.values_of(refit.module)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-9)


def test_a_hessian_is_built_for_each_step_and_none_at_the_minimum(monkeypatch):
    built: list[torch.Tensor] = []
    hessian = NewtonSystem.hessian
    monkeypatch.setattr(NewtonSystem, "hessian", lambda self, J, theta: built.append(theta) or hessian(self, J, theta))
    problem = Logistic.make()
    minimum = trust_region(problem.objective(), torch.zeros_like(problem.theta), 1e-12)
    assert len(built) == minimum.steps > 1
    again = trust_region(problem.objective(), minimum.theta, 1e-12)
    assert (again.steps, again.grad_norm) == (0, minimum.grad_norm)
    assert len(built) == minimum.steps


def test_in_32_bits_inside_it_ends_where_64_bits_do():
    problem = Logistic.make()
    inner = NewtonSystem(data=TrainingData(problem.loader(), torch.device("cpu"), torch.float32))
    minimum = trust_region(problem.objective(), torch.zeros_like(problem.theta), 1e-12, inner=inner)
    torch.testing.assert_close(minimum.theta, problem.theta, rtol=0, atol=5e-11)


def test_steps_that_run_out_in_32_bits_are_not_blamed_on_rounding():
    problem = Logistic.make()
    module = type(problem.module)(num_features=4, num_classes=3, l2_reg=0.02, dtype="float32")
    objective = Objective.of(module, problem.loader())
    with pytest.raises(WorkError, match=r"all 1 steps of finish\.max_steps are taken") as caught:
        trust_region(objective, torch.zeros(12), 1e-6, max_steps=1)
    assert "rounding" not in str(caught.value)


def test_a_kink_is_not_blamed_on_rounding():
    class Corner(SampleLossModule):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([0.3, 0.0], dtype=torch.float64))

        def sample_losses(self, batch):
            return (self.weight - batch[0][:, :1]).abs().sum(1) + self.weight.square().sum()

        def penalty(self):
            return self.weight.square().sum()

    data = DataLoader(TensorDataset(torch.zeros(4, 1, dtype=torch.float64)))
    objective = Objective.of(Corner(), data)
    with pytest.raises(WorkError, match="it has a kink here, or its gradient is not its derivative"):
        trust_region(objective, torch.tensor([0.3, 0.2], dtype=torch.float64), 1e-10, max_steps=1000)


def test_a_finish_that_does_not_arrive_says_what_can_be_done():
    loader = samples()[2]
    finish = NewtonFinish("always", max_steps=1)
    with pytest.raises(WorkError) as caught:
        Refitter(Curved, lambda: loader, TrainerSettings(max_epochs=1, precision="64-true"), finish, seed=0).fit()
    for flag in (
        "--finish.max_steps 4,",
        "--finish.after never",
        "requires_grad_(False)",
        "scores of a damped curvature",
    ):
        assert flag in str(caught.value)
