"""Refits as jobs for any process: requests and results as plain data, and the work that turns one into the other."""

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

from ifloo.data import AdaptedData
from ifloo.data.adapted import training_loader
from ifloo.data.protocol import AttributionData
from ifloo.models import Adapted, SampleLossModule
from ifloo.objective import Batch, SampleWeights, scoring
from ifloo.objective.batches import to_module, without_ids
from ifloo.objective.singles import Singles
from ifloo.params import ParamSpace
from ifloo.refit.refitter import Refitter
from ifloo.refit.selection import RefitSettings
from ifloo.refit.strategies.base import RefitStrategy, RefitTask
from ifloo.refit.strategies.strategy_choice import choose_strategy
from ifloo.store import NULL_ID

DISPLACEMENT_ULPS = 1e3  # distance of the starts of null refits from θ if J is not convex, units in the last place of θ


@dataclass(frozen=True)
class RefitRequest:
    """Request of one refit.

    Attributes:
        id: Id of the removed sample; `NULL_ID` for null refits and groups.
        draw: Number of the displaced start of a null refit, from 1; 0 does not displace the start.
        weight: Weight of the sample; 0 removes it.
        group: Ids of samples removed together.
        name: Name of the group.
    """

    id: int
    draw: int = 0
    weight: float = 0.0
    group: tuple[int, ...] = ()
    name: str = ""


Unit: TypeAlias = tuple[RefitRequest, ...]


@dataclass(frozen=True)
class RefitResult:
    """Result of one refit.

    Attributes:
        request: Request that was carried out.
        losses: Losses of the m test samples, nats.
        grad_norm: ‖∇J‖ at the end of the fit.
        steps: Number of Newton steps.
        objective: J at the end of the fit, nats.
        seconds: Wall time, seconds; an equal share of that of its unit.
        displacement: Norm of the step that displaced the start; None if it was not displaced.
        drift: Distance of the final weights from those of the base model, relative to these, of a null refit from
            scratch; else None.
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
    """Trains and evaluates units of refits; what all units share is computed for the first and kept.

    It is pickled to other processes without what has been computed, so `refitter.start` and `refitter.loader` must be
    picklable, as `functools.partial` and `TrainingLoader` are.

    Attributes:
        base: Base module.
        refitter: Refitter of the base fit.
        queries: Batch of the m test samples.
        n: Number of training samples.
        settings: Settings of removal, noise floor and strategy.
    """

    base: SampleLossModule
    refitter: Refitter
    queries: Batch
    n: int
    settings: RefitSettings

    def __reduce__(self) -> tuple[type[RefitWork], tuple[object, ...]]:
        """Pickles neither the strategy nor the steps of null refits; another process computes them itself."""
        return type(self), (self.base, self.refitter, self.queries, self.n, self.settings)

    @cached_property
    def strategy(self) -> RefitStrategy:
        """Strategy that trains units, chosen in each process; not prepared yet."""
        return choose_strategy(self.refitter, self.settings.replicas)

    def run(self, unit: Unit) -> list[RefitResult]:
        """Trains the refits of a unit and evaluates each on all test samples.

        Raises:
            WorkError: If a refit does not converge.
        """
        results: list[RefitResult] = []
        while len(results) < len(unit):  # a process with little memory may have to train the unit in parts
            results += self._run(unit[len(results) : len(results) + self._prepared.max_at_once])
        return results

    def _run(self, requests: Sequence[RefitRequest]) -> list[RefitResult]:
        tasks = [self._task(one) for one in requests]
        begun = time.perf_counter()
        refits = self._prepared.fit(tasks)
        share = (time.perf_counter() - begun) / len(requests)
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
            for one, task, refit in zip(requests, tasks, refits, strict=True)
        ]

    def _drift(self, module: SampleLossModule) -> float:
        space = ParamSpace.of(self.base)
        base = space.values_of(self.base)
        return float((space.values_of(module).to(base) - base).norm() / base.norm().clamp_min(1e-300))

    def _task(self, request: RefitRequest) -> RefitTask:
        if removed := request.group or (() if request.id == NULL_ID else (request.id,)):
            if request.weight:
                return RefitTask(SampleWeights.stepped(request.id, request.weight))
            share = self.base.share_of(removed) if isinstance(self.base, Adapted) else None
            return RefitTask(SampleWeights.removing(removed, self.settings.removal, self.n, share))
        return RefitTask(displacement=self._removal_steps[request.draw - 1]) if request.draw else RefitTask()

    @cached_property
    def _prepared(self) -> RefitStrategy:
        self.strategy.prepare(self.base)
        return self.strategy

    @cached_property
    def _removal_steps(self) -> Float[Tensor, "k p"]:
        """Displacements of the starts of null refits, so that these refits move.

        If J is strongly convex they are the steps that removals of random samples would cause, and the refits return
        to the minimum. Otherwise they have the size of rounding errors, and the spread of the refits shows how much
        training amplifies rounding.
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
    """Computes the loss of each test sample, nats, without penalty."""
    batch = without_ids(to_module(queries, module))
    with torch.no_grad(), scoring(module):
        if isinstance(batch, Singles):
            return [float(module.single_loss(one)) for one in batch.batches]
        return [float(x) for x in module.sample_losses(batch)]


@dataclass(frozen=True)
class TrainingLoader:
    """Makes the training loader of a data module; the data module is pickled without its Trainer.

    Attributes:
        data: Data module.
    """

    data: AttributionData

    def __call__(self) -> DataLoader[Batch]:
        return training_loader(self.data)

    def __getstate__(self) -> dict[str, AttributionData]:
        data = copy.copy(self.data)
        if isinstance(data, L.LightningDataModule) and not isinstance(data, AdaptedData):  # which leaves it itself
            data.trainer = None
        return {"data": data}
