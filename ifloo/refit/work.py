"""Refits as units of work: plain data that any process can take on, and plain outcomes that come back."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader

from ifloo.objective import Batch, SampleWeights, scoring
from ifloo.objective.batches import map_tensors
from ifloo.refit.choice import chosen
from ifloo.refit.path import RefitPath, RefitTask
from ifloo.refit.plan import RefitSettings
from ifloo.refit.recipe import Refitter
from ifloo.store import NULL_ID


@dataclass(frozen=True)
class Wanted:
    """One refit asked for.

    Attributes:
        id: removed sample; `NULL_ID`: none.
        draw: 0, or which of the displaced starts a null refit has (from 1).
    """

    id: int
    draw: int = 0


Unit: TypeAlias = tuple[Wanted, ...]


@dataclass(frozen=True)
class Outcome:
    """What came of one refit.

    Attributes:
        wanted: what was asked for.
        losses: of the m test samples, nats.
        grad_norm: ‖∇J‖ at its end.
        steps: Newton steps.
        objective: J at its end, nats.
        seconds: its share of the time its unit was trained.
        displacement: ‖step‖ that moved its start; None: not moved.
    """

    wanted: Wanted
    losses: tuple[float, ...]
    grad_norm: float
    steps: int
    objective: float
    seconds: float
    displacement: float | None = None


@dataclass(frozen=True)
class RefitWork:
    """All that a process needs to train and evaluate units; what they share is made at the first and kept.

    It travels between processes without what was made: `refitter.start` and `refitter.loader` must travel too, as
    `functools.partial` and `TrainingLoader` do.

    Attributes:
        base: the base module.
        refitter: fits again.
        queries: batch of the m test samples.
        n: training samples.
        settings: of removal, noise floor and path.
    """

    base: Any
    refitter: Refitter
    queries: Batch
    n: int
    settings: RefitSettings

    def __getstate__(self) -> dict[str, Any]:
        return {one.name: getattr(self, one.name) for one in fields(self)}

    @cached_property
    def path(self) -> RefitPath:
        """How units are trained, chosen in each process for itself; nothing is prepared yet."""
        return chosen(self.refitter, self.settings.replicas)

    def run(self, unit: Unit) -> list[Outcome]:
        """Trains the refits of a unit and evaluates each on all test samples.

        Raises:
            WorkError: a refit that did not converge.
        """
        outcomes: list[Outcome] = []
        while len(outcomes) < len(unit):  # a process with little memory may have to take them in parts
            outcomes += self._run(unit[len(outcomes) : len(outcomes) + self._prepared.at_once])
        return outcomes

    def _run(self, wanted: Sequence[Wanted]) -> list[Outcome]:
        tasks = [self._task(one) for one in wanted]
        begun = time.perf_counter()
        refits = self._prepared.fit(tasks)
        share = (time.perf_counter() - begun) / len(wanted)
        return [
            Outcome(
                one,
                tuple(self._losses(refit.module)),
                refit.minimum.grad_norm,
                refit.minimum.steps,
                refit.minimum.value,
                share,
                None if task.displacement is None else float(task.displacement.norm()),
            )
            for one, task, refit in zip(wanted, tasks, refits, strict=True)
        ]

    def _task(self, wanted: Wanted) -> RefitTask:
        if wanted.id != NULL_ID:
            return RefitTask(SampleWeights.removing([wanted.id], self.settings.removal, self.n))
        return RefitTask(displacement=self._removal_steps[wanted.draw - 1]) if wanted.draw else RefitTask()

    @cached_property
    def _prepared(self) -> RefitPath:
        self.path.prepare(self.base)
        return self.path

    @cached_property
    def _removal_steps(self) -> Float[Tensor, "k p"]:
        """Where the removal of random samples would put the weights: starts of null refits that really move."""
        return self._prepared.removal_steps(self.base, self.settings.null_refits, self.settings.seed)

    def _losses(self, module: Any) -> list[float]:
        device = next(module.parameters()).device
        queries = map_tensors(lambda x: x.to(device), self.queries)
        with torch.no_grad(), scoring(module):
            return [float(x) for x in module.sample_losses(queries)]


@dataclass(frozen=True)
class TrainingLoader:
    """Makes the training loader of a data module, which travels without the Trainer it was fitted by."""

    data: Any

    def __call__(self) -> DataLoader:
        return self.data.train_dataloader()

    def __getstate__(self) -> dict[str, Any]:
        data = copy.copy(self.data)
        data.trainer = None
        return {"data": data}
