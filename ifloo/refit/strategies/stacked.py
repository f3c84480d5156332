"""Strategy for any model: the weights of K replicas stacked in one module, trained by the model's own optimizer."""

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

from ifloo.minimize.newton_cg import FitEnd
from ifloo.models import SampleLossModule
from ifloo.objective import Batch, Objective, scoring
from ifloo.objective.batch_samplers import EqualBatches
from ifloo.objective.out_of_memory import in_parts
from ifloo.params import ParamSpace
from ifloo.refit.newton_finish import NewtonFinish, training_loader
from ifloo.refit.refitter import Refit, Refitter
from ifloo.refit.strategies.base import RefitStrategy, RefitTask
from ifloo.refit.strategies.replica_weights import ReplicaWeights
from ifloo.refit.strategies.stackable import MemoryPerReplica, check_stackable
from ifloo.refit.strategies.stacked_module import StackedModule

STACKED_AT_MOST = 64  # replicas; more gain little speed, and a killed run loses the refits of one fit
CACHES = 32 << 20  # bytes; beyond this size a processor waits for memory, and replicas gain nothing (measured)
COPIES = 8  # tensors as large as the weights: weights, gradient, two of the optimizer, temporary ones of a step


class StackedReplicas(RefitStrategy):
    """Trains K replicas of the weights in one Trainer fit: same seed and batches, other samples removed in each.

    The parameters of the replicas are stacked to `[k, *shape]` tensors, and the loss is computed for all replicas by
    `torch.func.vmap`. Each replica ends where a refit one by one does, up to the order of additions. If memory runs
    out, half as many are trained at once.
    """

    name: ClassVar[str] = "stacked replicas"
    words: ClassVar[str] = "as copies in one fit"

    def __init__(self, refitter: Refitter, max_at_once: int | None = None) -> None:
        """Checks settings, model and the first batch.

        Args:
            refitter: Refitter of the base fit.
            max_at_once: Number of replicas trained together; None takes as many as fit into memory (on a processor,
                into its caches), at most 64.

        Raises:
            StrategyError: If replicas would not end where refits one by one do; the text gives the reason.
        """
        self.refitter = refitter
        memory = check_stackable(refitter)
        self.max_at_once = max_at_once or _affordable(memory)

    def prepare(self, base: SampleLossModule) -> None:
        """Prepares nothing: these fits end without Newton steps, and `removal_steps` makes its own preconditioner."""

    def fit(self, tasks: Sequence[RefitTask]) -> list[Refit]:
        refits, self.max_at_once = in_parts(tasks, self.max_at_once, self._train, "replicas")
        return refits

    def _train(self, tasks: Sequence[RefitTask]) -> list[Refit]:
        begun = time.perf_counter()
        weights = [task.weights for task in tasks]

        def make() -> StackedModule:
            module = self.refitter.start()
            space = ParamSpace.of(module)
            theta = space.values_of(module)
            starts = [theta if task.displacement is None else theta + task.displacement for task in tasks]
            return StackedModule(module, torch.stack(starts), weights)

        measure = _MeasureEnds(self.refitter.finish)
        stacked = self.refitter.train(make, measure)
        seconds = (time.perf_counter() - begun) / len(tasks)
        modules = _unstacked(stacked)
        return [Refit(module, end, seconds) for module, end in zip(modules, measure.ends, strict=True)]


class _MeasureEnds(L.Callback):
    """Measures J and ‖∇J‖ of each replica after training, as `NewtonFinish` does for a single model.

    Attributes:
        finish: Callback of refits one by one, for its data and batch size.
        ends: End of the fit of each replica; empty before training has ended.
    """

    def __init__(self, finish: NewtonFinish) -> None:
        self.finish = finish
        self.ends: list[FitEnd] = []

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, StackedModule)
        loader = training_loader(trainer)
        objective = self.finish.objective(pl_module.module, loader)
        # Training batches may be far smaller than those here; the activations must not need more memory than there.
        rows = loader.batch_sampler.batch_size if isinstance(loader.batch_sampler, EqualBatches) else 1
        chunk = max(1, len(pl_module.weights) * min(rows, objective.n) // min(self.finish.batch_size, objective.n))
        with scoring(pl_module.module):
            self.ends = _ends(objective, pl_module.theta(), pl_module.replica_weights(), chunk)


def _ends(objective: Objective, theta: Float[Tensor, "k p"], weights: ReplicaWeights, chunk: int) -> list[FitEnd]:
    """Computes J and ‖∇J‖ of each replica in one pass over the data, for `chunk` replicas at a time on each batch."""
    losses = objective.losses

    def part(values: Tensor, row: Tensor, batch: Batch) -> Tensor:
        each = losses.sample_losses(values, batch)
        return (row.to(each.dtype) * each).sum() / objective.n

    gradient, value = vmap(grad_and_value(losses.penalty))(theta)
    for ids, batch in objective.data.with_ids():
        each = vmap(grad_and_value(part), in_dims=(0, 0, None), randomness="same", chunk_size=chunk)
        g, v = each(theta, weights.rows(ids), batch)
        gradient, value = gradient + g, value + v
    norms = gradient.norm(dim=1)
    return [FitEnd(t, float(v), float(g), 0, 0) for t, v, g in zip(theta, value, norms, strict=True)]


def _unstacked(stacked: StackedModule) -> list[SampleLossModule]:
    """Converts each replica to a separate module; they share buffers and frozen parameters, which do not change."""
    base = stacked.module
    base.trainer = None  # else the Trainer would be copied with each module
    shared = [*base.buffers(), *(p for p in base.parameters() if not p.requires_grad)]
    modules = []
    for theta, weights in zip(stacked.theta(), stacked.weights, strict=True):
        module = copy.deepcopy(base, {id(x): x for x in shared})
        stacked.space.write_to(module, theta)
        module.sample_weights = weights
        modules.append(module)
    return modules


def _affordable(memory: MemoryPerReplica) -> int:
    """Returns how many replicas fit into memory; activations count twice, for the backward pass."""
    each = COPIES * memory.weights + 2 * memory.activations
    return max(1, min(STACKED_AT_MOST, _budget(memory.device) // max(each, 1)))


def _budget(device: torch.device) -> int:
    """Returns the bytes that all replicas together may use: half of a GPU's free memory, or a processor's caches."""
    return torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else CACHES
