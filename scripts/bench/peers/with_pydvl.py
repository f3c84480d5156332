"""pyDVL: its Hessian is that of the mean loss over the loader's batches; the penalty is passed as regularization."""

from __future__ import annotations

from typing import Any

import torch
from pydvl.influence.torch import CgInfluence, EkfacInfluence, NystroemSketchInfluence
from torch.nn.functional import cross_entropy

from bench.peers import plain
from bench.problem import Outcome, Problem, numbers
from bench.task import Task

RANK = 500


def conjugate_gradients(problem: Problem, task: Task) -> Outcome:
    made = CgInfluence(plain.model(problem), cross_entropy, regularization=problem.l2, **task.options)
    return _scores(problem, task, made, problem.n)


def nystroem(problem: Problem, task: Task) -> Outcome:
    made = NystroemSketchInfluence(plain.model(problem), cross_entropy, regularization=problem.l2, rank=RANK)
    return _scores(problem, task, made, problem.n)


def ekfac(problem: Problem, task: Task) -> Outcome:
    made = EkfacInfluence(plain.model(problem), update_diagonal=True, hessian_regularization=problem.l2)
    return _scores(problem, task, made, plain.BATCH)


def _scores(problem: Problem, task: Task, influence: Any, batch: int) -> Outcome:
    tests = problem.tests(task.work)
    train, queries = plain.train_set(problem), plain.test_set(problem, tests)
    influence.fit(plain.loader(train, batch))
    factors = influence.influence_factors(*queries.tensors)
    products = [influence.influences_from_factors(factors, x, y) for x, y in plain.loader(train)]
    return plain.found(problem, tests, torch.cat([p.detach() for p in products], dim=1), numbers(factors))
