"""Losses as functions of θ: what torch.func needs of the surroundings, and that these are left as they were."""

import lightning as L
import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ifloo.objective import FunctionalLosses, Objective, differentiable_kernels, scoring
from ifloo.objective.functional import silenced
from ifloo.params import ParamSpace
from tests.problems import Attention, Logistic, Ridge, weights_with


@pytest.mark.parametrize("fastpath", [True, False])
def test_kernels_are_restored(fastpath):
    flags = (torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.mem_efficient_sdp_enabled)
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(fastpath)
    try:
        was = [f() for f in flags]
        with differentiable_kernels(), differentiable_kernels():
            assert not torch.backends.mha.get_fastpath_enabled()
            assert [f() for f in flags] == [False, False]
        with pytest.raises(KeyError), differentiable_kernels():
            raise KeyError
        assert torch.backends.mha.get_fastpath_enabled() is fastpath
        assert [f() for f in flags] == was
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def test_fused_attention_needs_them():
    """The torch fact behind `differentiable_kernels`: on CPU the fused kernel has no second derivative."""
    q = torch.randn(1, 1, 3, 4, dtype=torch.float64, requires_grad=True)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        (g,) = torch.autograd.grad(nn.functional.scaled_dot_product_attention(q, q, q).sum(), q, create_graph=True)
        with pytest.raises(RuntimeError, match="not implemented"):
            torch.autograd.grad(g.square().sum(), q)


def test_scoring_restores_modes_and_log():
    module = L.LightningModule()
    module.linear, module.dropout = nn.Linear(2, 2), nn.Dropout(0.5)
    calls = []
    module.log = own = lambda *a: calls.append(a)
    module.train()
    module.linear.eval()
    with scoring(module):
        assert not any(m.training for m in module.modules())
        module.log("nothing", 1.0)
    with pytest.raises(KeyError), scoring(module):
        raise KeyError
    assert [m.training for m in module.modules()] == [True, False, True]
    assert module.log is own
    assert calls == []


class Scale(nn.Module):
    """A layer whose forward pass asks a flag, calls a function or uses a tensor, each of which is named `log`."""

    def __init__(self, log):
        super().__init__()
        self.log = log

    def forward(self, y):
        if isinstance(self.log, bool):
            return y.exp().log1p() if self.log else y
        return self.log(y) if callable(self.log) else y * self.log


@pytest.mark.parametrize(
    "log",
    [False, True, torch.log1p, nn.Linear(2, 2), nn.Parameter(torch.tensor([2.0, 3.0])), torch.tensor([2.0, 3.0])],
    ids=["flag off", "flag on", "function", "layer", "parameter", "tensor"],
)
def test_what_a_layer_calls_log_is_not_replaced(log):
    module, y = nn.Sequential(Scale(log)), torch.tensor([[0.5, 1.5]])
    expected = module(y)
    with scoring(module):
        torch.testing.assert_close(module(y), expected, rtol=0, atol=0)
    assert module[0].log is log


def test_a_flag_of_a_module_that_hides_the_method_of_lightning_is_not_replaced():
    module = L.LightningModule()
    module.log = False
    with scoring(module):
        assert module.log is False
    assert module.log is False


def test_scoring_leaves_an_inherited_log_inherited():
    module = Logistic.make(n=5).module
    with scoring(module):
        module.log(
            "loss", torch.tensor(1.0)
        )  # unattached, Lightning's own would warn; attached, it fails in a transform
        assert "log" in module.__dict__
    assert "log" not in module.__dict__
    assert "log_dict" not in module.__dict__


@pytest.mark.parametrize("problem", [Ridge.make(), Logistic.make(), Attention.make()], ids=lambda p: type(p).__name__)
def test_value_and_gradient_are_those_of_plain_autograd(problem):
    theta = problem.theta + 0.1
    weights = torch.ones(problem.n, dtype=torch.float64)
    weights[3] = 0.5
    objective = problem.objective().reweighted(weights_with([3], [0.5]))
    value, gradient = objective.value_and_gradient(theta)
    truth = torch.autograd.functional.jacobian(lambda t: problem.value(t, weights), theta)
    torch.testing.assert_close(value, problem.value(theta, weights).detach(), rtol=1e-13, atol=0)  # re-associated
    torch.testing.assert_close(objective.value(theta), value, rtol=1e-14, atol=0)
    torch.testing.assert_close(gradient, truth, rtol=1e-11, atol=1e-13)


def test_parameters_outside_the_space_are_constants():
    """Attached, they would keep the graph of every batch alive with each sum over the data."""
    problem = Attention.make()
    space = ParamSpace.of(problem.module, ["head.*"])
    objective = Objective(FunctionalLosses(problem.module, space), problem.data())
    value, gradient = objective.value_and_gradient(space.values_of(problem.module))
    assert not value.requires_grad
    assert not gradient.requires_grad
    whole = problem.space.unflatten(problem.objective().gradient(problem.theta))
    torch.testing.assert_close(gradient, space.flatten(whole), rtol=1e-12, atol=1e-14)


def test_a_penalty_that_is_no_function_of_the_parameters():
    problem = Logistic.make()
    problem.module.penalty = lambda: torch.zeros((), dtype=torch.float64)
    value, gradient = problem.objective().value_and_gradient(problem.theta)
    losses = problem.losses_at(problem.theta, problem.x, problem.labels).mean()
    torch.testing.assert_close(value, losses, rtol=1e-14, atol=0)
    # at the minimum of J the rest of ∇J is −λθ
    torch.testing.assert_close(gradient, -problem.penalty * problem.theta, rtol=0, atol=1e-13)


def test_silencing_within_silencing_ends_with_the_outer_one():
    module = Logistic.make(n=5).module
    with silenced(module):
        quiet = module.log
        with silenced(module):
            assert module.log is quiet
        assert module.log is quiet
    assert "log" not in module.__dict__
