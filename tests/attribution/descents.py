"""Small models trained by plain autograd, with their recorded runs."""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ifloo.attribution import TrainedModel
from ifloo.attribution.recorded import RecordedRun, State, Update
from tests.problems import Problem

# Reason: sums of up to 50 products of numbers near 1 in another order, and solves to 1e-13 at a condition below 1e3.
CLOSE = {"rtol": 1e-9, "atol": 1e-12}
BATCHES = [[3, 1, 4, 8], [0, 2, 11, 7], [5, 9], [10, 6, 1, 3], [11, 0, 8], [4, 2, 7, 5]]
RATES = torch.tensor([0.3, 0.3, 0.2, 0.2, 0.1, 0.1], dtype=torch.float64)
SAVED = (0, 2, 3, 6)


@dataclass(frozen=True)
class Plain(Update):
    """Gradient descent; `momentum` only changes the gain and is not part of the steps."""

    momentum: float = 0.0

    def start(self, theta: Tensor) -> State:
        return State(theta, ())

    def step(self, state: State, gradient: Tensor, rate: Tensor, count: Tensor) -> State:
        return State(state.theta - rate * gradient, ())

    def gain(self, state: State, count: int) -> float:
        return 1 / (1 - self.momentum)


def descended(problem: Problem, theta: Tensor, ids: list[int], rate: float, weights: Tensor | None = None) -> Tensor:
    """Returns θ after one step on the mean loss of a batch and the penalty, by plain autograd."""
    theta = theta.clone().requires_grad_()
    losses = problem.losses_at(theta, problem.x[ids], problem.labels[ids])
    value = (losses * (1.0 if weights is None else weights)).mean() + problem.penalty / 2 * theta @ theta
    return theta.detach() - rate * torch.autograd.grad(value, theta)[0]


@cache
def states(problem_type: type) -> list[Tensor]:
    """Returns θ before the first step and after each."""
    problem = made(problem_type)
    draw = torch.Generator().manual_seed(8)
    thetas = [torch.randn(problem.theta.shape, generator=draw, dtype=torch.float64)]
    for ids, rate in zip(BATCHES, RATES.tolist(), strict=True):
        thetas.append(descended(problem, thetas[-1], ids, rate))
    return thetas


@cache
def made(problem_type: type) -> Problem:
    return problem_type.make()


def trained(problem_type: type, batch_size: int = 7, momentum: float = 0.0, **loader_settings) -> TrainedModel:
    problem, kept = made(problem_type), states(problem_type)
    ids = [torch.tensor(b) for b in BATCHES]
    run = RecordedRun(Plain(momentum), ids, RATES, SAVED, lambda k: State({s: kept[s] for s in SAVED}[k], ()))
    return TrainedModel(problem.objective(batch_size, **loader_settings), problem.theta, run)


def gradients(problem: Problem, theta: Tensor) -> tuple[Tensor, Tensor]:
    """Computes ∇L_t and ∇ℓ_i, one backward pass each."""
    queries = problem.queries
    of_queries = problem.gradients(theta, queries["x"], queries["labels"])
    return of_queries, problem.gradients(theta, problem.x, problem.labels)


def among(problem: Problem, beginnings: tuple[str, ...]) -> Tensor:
    """Returns a mask of the entries of θ whose parameter names begin with one of `beginnings`, `[p]`."""
    named = zip(problem.space.names, problem.space.shapes, strict=True)
    return problem.space.flatten({n: torch.full(s, float(n.startswith(beginnings))) for n, s in named}) > 0
