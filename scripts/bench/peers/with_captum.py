"""captum: Arnoldi's low-rank inverse; its Hessian is that of the sum of the losses, so the penalty is scaled by n."""

from __future__ import annotations

from pathlib import Path

import torch
from captum.influence._core.arnoldi_influence_function import ArnoldiInfluenceFunction
from torch import nn

from bench.peers import plain
from bench.problem import Outcome, Problem
from bench.task import Task


def arnoldi(problem: Problem, task: Task) -> Outcome:
    tests, model = problem.tests(task.work), plain.model(problem)
    checkpoint = Path(task.folder) / "captum.pt"
    torch.save(model.state_dict(), checkpoint)
    influence = ArnoldiInfluenceFunction(
        model,
        plain.loader(plain.train_set(problem)),
        str(checkpoint),
        loss_fn=nn.CrossEntropyLoss(reduction="none"),
        hessian_reg=problem.l2 * problem.n,
        **task.options,
    )
    queries = plain.test_set(problem, tests).tensors
    return plain.found(problem, tests, influence.influence(queries) * problem.n)
