"""dattri: CG on one full batch, because it sums one inverse per batch of the cached loader."""

from __future__ import annotations

import torch
from dattri.algorithm.influence_function import IFAttributorCG
from dattri.task import AttributionTask
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from bench.peers import plain
from bench.problem import Outcome, Problem
from bench.task import Task

STEPS = 100


def conjugate_gradients(problem: Problem, task: Task) -> Outcome:
    tests, model = problem.tests(task.work), plain.model(problem)

    def loss(parameters: dict[str, Tensor], data: tuple[Tensor, Tensor]) -> Tensor:
        x, y = data
        return cross_entropy(functional_call(model, parameters, x), y)

    described = AttributionTask(loss_func=loss, model=model, checkpoints=model.state_dict())
    attributor = IFAttributorCG(described, device=problem.device, max_iter=STEPS, regularization=problem.l2)
    train = plain.train_set(problem)
    attributor.cache(plain.loader(train, problem.n))
    queries = plain.loader(plain.test_set(problem, tests), len(tests))
    with torch.no_grad():
        products = attributor.attribute(plain.loader(train), queries)
    return plain.found(problem, tests, products.T)
