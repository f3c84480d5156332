"""Refits as units of work: plain data that any process can take on, and plain outcomes that come back."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import lightning as L
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader

from ifloo.data.protocol import AttributionData
from ifloo.models import SampleLossModule
from ifloo.objective import Batch, SampleWeights, scoring
from ifloo.objective.batches import to_module, without_ids
from ifloo.params import ParamSpace
from ifloo.refit.recipe import Refitter
from ifloo.refit.selection import RefitSettings
from ifloo.refit.strategies.base import RefitStrategy, RefitTask
from ifloo.refit.strategies.strategy_choice import choose_strategy
from ifloo.store import NULL_ID

DISPLACEMENT_ULPS = 1e3  # units in the last place of θ: how far null refits start from it where J is not convex


@dataclass(frozen=True)
class RefitRequest:
    """One refit asked for.

    Attributes:
        id: removed sample; `NULL_ID`: none, or those of a group.
        draw: 0, or which of the displaced starts a null refit has (from 1).
        weight: of the sample; 0 removes it.
        group: samples removed together.
        name: of the group.
    """

    id: int
    draw: int = 0
    weight: float = 0.0
    group: tuple[int, ...] = ()
    name: str = ""


Unit: TypeAlias = tuple[RefitRequest, ...]


@dataclass(frozen=True)
class RefitResult:
    """What came of one refit.

    Attributes:
        wanted: what was asked for.
        losses: of the m test samples, nats.
        grad_norm: ‖∇J‖ at its end.
        steps: Newton steps.
        objective: J at its end, nats.
        seconds: its share of the time its unit was trained.
        displacement: ‖step‖ that moved its start; None: not moved.
        astray: of a null refit from scratch, relative distance between its weights and the base model's.
    """

    request: RefitRequest
    losses: tuple[float, ...]
    grad_norm: float
    steps: int
    objective: float
    seconds: float
    displacement: float | None = None
    drift: float | None = None


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

    base: SampleLossModule
    refitter: Refitter
    queries: Batch
    n: int
    settings: RefitSettings

    def __reduce__(self) -> tuple[type[RefitWork], tuple[object, ...]]:
        """Without the path and the steps, which another process makes for itself."""
        return type(self), (self.base, self.refitter, self.queries, self.n, self.settings)

    @cached_property
    def path(self) -> RefitStrategy:
        """How units are trained, chosen in each process for itself; nothing is prepared yet."""
        return choose_strategy(self.refitter, self.settings.replicas)

    def run(self, unit: Unit) -> list[RefitResult]:
        """Trains the refits of a unit and evaluates each on all test samples.

        Raises:
            WorkError: a refit that did not converge.
        """
        outcomes: list[RefitResult] = []
        while len(outcomes) < len(unit):  # a process with little memory may have to take them in parts
            outcomes += self._run(unit[len(outcomes) : len(outcomes) + self._prepared.at_once])
        return outcomes

    def _run(self, wanted: Sequence[RefitRequest]) -> list[RefitResult]:
        tasks = [self._task(one) for one in wanted]
        begun = time.perf_counter()
        refits = self._prepared.fit(tasks)
        share = (time.perf_counter() - begun) / len(wanted)
        return [
            RefitResult(
                one,
                tuple(test_losses(refit.module, self.queries)),
                refit.minimum.grad_norm,
                refit.minimum.steps,
                refit.minimum.value,
                share,
                None if task.displacement is None else float(task.displacement.norm()),
                self._drift(refit.module) if one == RefitRequest(NULL_ID) and self.settings.init == "cold" else None,
            )
            for one, task, refit in zip(wanted, tasks, refits, strict=True)
        ]

    def _drift(self, module: SampleLossModule) -> float:
        space = ParamSpace.of(self.base)
        base = space.values_of(self.base)
        return float((space.values_of(module).to(base) - base).norm() / base.norm().clamp_min(1e-300))

    def _task(self, wanted: RefitRequest) -> RefitTask:
        if removed := wanted.group or (() if wanted.id == NULL_ID else (wanted.id,)):
            if wanted.weight:
                return RefitTask(SampleWeights.stepped(wanted.id, wanted.weight))
            return RefitTask(SampleWeights.removing(removed, self.settings.removal, self.n))
        return RefitTask(displacement=self._removal_steps[wanted.draw - 1]) if wanted.draw else RefitTask()

    @cached_property
    def _prepared(self) -> RefitStrategy:
        self.path.prepare(self.base)
        return self.path

    @cached_property
    def _removal_steps(self) -> Float[Tensor, "k p"]:
        """What displaces the starts of null refits, so that they really move.

        Where J is convex, the steps that the removal of random samples would take; a refit finds back from there.
        Elsewhere steps of a rounding's size: how far they are apart at the end is what training makes of rounding.
        """
        count, seed = self.settings.null_refits, self.settings.seed
        if self.base.strong_convexity() is not None:
            return self._prepared.removal_steps(self.base, count, seed)
        start = self.refitter.start()
        theta = ParamSpace.of(start).values_of(start)
        drawn: Tensor = torch.randn(
            count, len(theta), generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        )
        size: Tensor = DISPLACEMENT_ULPS * torch.finfo(theta.dtype).eps * theta.norm() / len(theta) ** 0.5
        return drawn.to(theta) * size


def test_losses(module: SampleLossModule, queries: Batch) -> list[float]:
    """The loss of each test sample, nats, without penalty."""
    with torch.no_grad(), scoring(module):
        return [float(x) for x in module.sample_losses(without_ids(to_module(queries, module)))]


@dataclass(frozen=True)
class TrainingLoader:
    """Makes the training loader of a data module, which travels without the Trainer it was fitted by."""

    data: AttributionData

    def __call__(self) -> DataLoader[Batch]:
        return self.data.train_dataloader()

    def __getstate__(self) -> dict[str, AttributionData]:
        data = copy.copy(self.data)
        if isinstance(data, L.LightningDataModule):
            data.trainer = None
        return {"data": data}
