"""Replicas of any model trained together: weights stacked, vmap over them, the user's own optimizer."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from typing import ClassVar

import lightning as L
import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad_and_value, vmap
from torch.utils.data import BatchSampler

from ifloo.minimize.newton_cg import FitEnd
from ifloo.models import SampleLossModule
from ifloo.objective import Batch, Objective, scoring
from ifloo.objective.out_of_memory import in_parts
from ifloo.params import ParamSpace
from ifloo.refit.newton_finish import NewtonFinish, training_loader
from ifloo.refit.recipe import Refit, Refitter
from ifloo.refit.strategies.base import RefitStrategy, RefitTask
from ifloo.refit.strategies.replica_weights import ReplicaWeights
from ifloo.refit.strategies.stackable import MemoryPerReplica, check_stackable
from ifloo.refit.strategies.stacked_module import StackedModule

STACKED_AT_MOST = 64  # replicas: most of the gain, and a killed run loses no more refits than this
CACHES = 32 << 20  # bytes: beyond them a processor waits for memory, and replicas gain nothing (measured)
COPIES = 8  # of the weights: themselves, gradient, two of the optimizer, and what a step holds meanwhile


class StackedReplicas(RefitStrategy):
    """K replicas of the weights in one Trainer fit: same seed and batches, each with its own samples removed.

    Each ends where a refit of its own would, up to the order of additions. Memory runs out: half as many at once.
    """

    name: ClassVar[str] = "stacked replicas"

    def __init__(self, refitter: Refitter, at_once: int | None = None) -> None:
        """Looks at model, recipe and the first batch.

        Args:
            refitter: whose refits these are.
            at_once: replicas trained together; None: as many as pay, at most 64.

        Raises:
            StrategyError: replicas would not end where refits one by one do; the text says why.
        """
        self.refitter = refitter
        appetite = check_stackable(refitter)
        self.at_once = at_once or _affordable(appetite)

    def prepare(self, base: SampleLossModule) -> None:
        """Nothing: no Newton steps follow, and displaced starts make their preconditioner when there are any."""

    def fit(self, tasks: Sequence[RefitTask]) -> list[Refit]:
        refits, self.at_once = in_parts(tasks, self.at_once, self._train, "replicas")
        return refits

    def _train(self, tasks: Sequence[RefitTask]) -> list[Refit]:
        begun = time.perf_counter()
        weights = [task.weights for task in tasks]

        def made() -> StackedModule:
            module = self.refitter.start()
            space = ParamSpace.of(module)
            theta = space.values_of(module)
            moved = [theta if task.displacement is None else theta + task.displacement for task in tasks]
            return StackedModule(module, torch.stack(moved), weights)

        ends = _Ends(self.refitter.finish)
        stacked = self.refitter.train(made, ends)
        seconds = (time.perf_counter() - begun) / len(tasks)
        modules = _apart(stacked)
        return [Refit(module, minimum, seconds) for module, minimum in zip(modules, ends.minima, strict=True)]


class _Ends(L.Callback):
    """Measures J and ‖∇J‖ of each replica after training, as `NewtonFinish` does of one."""

    def __init__(self, finish: NewtonFinish) -> None:
        self.finish = finish
        self.minima: list[FitEnd] = []

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, StackedModule)
        loader = training_loader(trainer)
        objective = self.finish.objective(pl_module.module, loader)
        # No more activations at once than in training, whose batches may be far smaller.
        rows = loader.batch_sampler.batch_size if isinstance(loader.batch_sampler, BatchSampler) else 1
        chunk = max(1, len(pl_module.weights) * min(rows, objective.n) // min(self.finish.batch_size, objective.n))
        with scoring(pl_module.module):
            self.minima = _minima(objective, pl_module.theta(), pl_module.replica_weights(), chunk)


def _minima(objective: Objective, theta: Float[Tensor, "k p"], weights: ReplicaWeights, chunk: int) -> list[FitEnd]:
    """Each replica as it is, with J and ‖∇J‖: one pass over the data, `chunk` replicas at a time on each batch."""
    losses = objective.losses

    def part(one: Tensor, row: Tensor, batch: Batch) -> Tensor:
        found = losses.sample_losses(one, batch)
        return (row.to(found.dtype) * found).sum() / objective.n

    gradient, value = vmap(grad_and_value(losses.penalty))(theta)
    for ids, batch in objective.data.with_ids():
        each = vmap(grad_and_value(part), in_dims=(0, 0, None), randomness="same", chunk_size=chunk)
        g, v = each(theta, weights.rows(ids), batch)
        gradient, value = gradient + g, value + v
    norms = gradient.norm(dim=1)
    return [FitEnd(t, float(v), float(g), 0, 0) for t, v, g in zip(theta, value, norms, strict=True)]


def _apart(stacked: StackedModule) -> list[SampleLossModule]:
    """Each replica as a module of its own; what no refit changes (buffers, frozen parameters) they share."""
    base = stacked.module
    base.trainer = None  # a copy of it would be a copy of the Trainer
    shared = [*base.buffers(), *(p for p in base.parameters() if not p.requires_grad)]
    modules = []
    for theta, weights in zip(stacked.theta(), stacked.weights, strict=True):
        module = copy.deepcopy(base, {id(x): x for x in shared})
        stacked.space.write_to(module, theta)
        module.sample_weights = weights
        modules.append(module)
    return modules


def _affordable(appetite: MemoryPerReplica) -> int:
    """Replicas that fit; activations count twice, for those of the backward pass."""
    each = COPIES * appetite.weights + 2 * appetite.activations
    return max(1, min(STACKED_AT_MOST, _budget(appetite.device) // max(each, 1)))


def _budget(device: torch.device) -> int:
    """Bytes for all replicas together: half of a GPU's free memory, the caches of a processor."""
    return torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else CACHES
