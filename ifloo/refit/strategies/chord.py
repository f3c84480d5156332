"""Refits of a linear head by the factor of its Hessian: certified, many at once, a few gradients each."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from functools import cached_property
from typing import ClassVar

import lightning as L
import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad

from ifloo.attribution.leverage import SampleBlocks
from ifloo.curvature import LinearHead
from ifloo.errors import InputError
from ifloo.minimize.newton_cg import FitEnd
from ifloo.models import SampleLossModule
from ifloo.models.fit_settings import optimizers_in
from ifloo.objective import Objective, scoring
from ifloo.objective.out_of_memory import in_parts
from ifloo.params import ParamSpace
from ifloo.progress import bar
from ifloo.refit.newton_finish import reachable
from ifloo.refit.recipe import Refit, Refitter, quiet_lightning
from ifloo.refit.strategies.base import OneByOne, RefitStrategy, RefitTask
from ifloo.refit.strategies.chord_module import ChordModule
from ifloo.refit.strategies.replica_weights import ReplicaWeights
from ifloo.refit.strategies.unsuitable import StrategyError
from ifloo.solvers import Cholesky
from ifloo.solvers.cholesky import PreparedCholesky, bytes_needed
from ifloo.termination import sigterm_unwinds

log = logging.getLogger(__name__)
CHORDS_AT_ONCE = 64  # replicas: a product of [b, d] with [d, 64 c] runs at the speed of large ones
PASSES = 20
FACTOR_BYTES = 4 << 30
PRODUCTS = 130  # of a refit one by one: 33 with the Hessian, at a quarter of the speed of large ones
WORTH = 30  # refits one by one: a factor that costs more than so many is made when it is asked for only


class ChordReplicas(RefitStrategy):
    """Chord Newton from the base minimum: the factor of the base Hessian serves every replica and every pass.

    The Hessian of the removed sample is taken out by Woodbury, so that a step misses only by how the curvature changes
    on the way. A replica whose ‖∇J‖ does not fall is fitted one by one.
    """

    name: ClassVar[str] = "chord Newton with one factor"

    def __init__(self, refitter: Refitter, at_once: int | None = None) -> None:
        """Looks at the model and where it starts.

        Args:
            refitter: whose refits these are.
            at_once: replicas trained together; None: 64.

        Raises:
            StrategyError: the model is not a linear head alone, at a minimum that refits are to reach again.
        """
        self.refitter, self.at_once = refitter, at_once or CHORDS_AT_ONCE
        self.base = refitter.start()
        self.tolerance = refitter.finish.tolerance or reachable(ParamSpace.of(self.base).dtype)
        _refuse_unfinished(refitter, self.base)
        with quiet_lightning():
            self.base.to(_trainer(refitter.recipe.accelerator).strategy.root_device)
        objective = Objective.of(self.base, refitter.loader(), batch_size=refitter.finish.batch_size)
        self.theta = objective.losses.theta()
        with scoring(self.base):
            self.gradient = objective.gradient(self.theta)
            self.penalty = grad(objective.losses.penalty)(self.theta)
        if not float(self.gradient.norm()) <= 10 * self.tolerance:
            raise StrategyError(
                f"refits start at |grad J| = {float(self.gradient.norm()):.1e}, not at the minimum of the base model"
            )
        if (need := LinearHead.bytes_kept(objective)) > FACTOR_BYTES:
            raise StrategyError(f"the head's inputs and output curvatures would take {need / 2**30:.1f} GiB")
        try:
            self.head = LinearHead(objective, self.theta)
        except InputError as error:
            raise StrategyError(str(error).splitlines()[0]) from error
        _refuse_costly(self.head, asked=at_once is not None)

    @cached_property
    def factor(self) -> PreparedCholesky:
        """Of the base Hessian, made once."""
        return Cholesky(max_bytes=FACTOR_BYTES).prepare(self.head, bar("factor"))

    def prepare(self, base: SampleLossModule) -> None:
        """The factor; no preconditioner is needed."""
        _ = self.factor

    def removal_steps(self, base: SampleLossModule, count: int, seed: int) -> Float[Tensor, "k p"]:
        """(1/n) H⁻¹∇ℓ_j of `count` random samples j."""
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randint(self.head.n, (count,), generator=generator)
        blocks = SampleBlocks.of(self.head, self.head.objective.data.ids[drawn].tolist())
        return self.factor.apply_inverse(torch.einsum("gs,gsp->gp", blocks.slopes, blocks.rows)) / self.head.n

    def fit(self, tasks: Sequence[RefitTask]) -> list[Refit]:
        refits, self.at_once = in_parts(tasks, self.at_once, self._train, "replicas")
        return refits

    def _train(self, tasks: Sequence[RefitTask]) -> list[Refit]:
        begun = time.perf_counter()
        woodbury = _Woodbury(self.head, self.factor, tasks)
        theta = torch.stack([self._start(k, task, woodbury) for k, task in enumerate(tasks)])
        weights = ReplicaWeights.of([task.weights for task in tasks], theta.device)
        module = ChordModule(self.head, theta, weights, woodbury.step, self.tolerance)
        with sigterm_unwinds(), quiet_lightning():
            _trainer(self.refitter.recipe.accelerator).fit(module)
        seconds = (time.perf_counter() - begun) / len(tasks)
        return [self._refit(minimum, task, seconds) for minimum, task in zip(module.minima, tasks, strict=True)]

    def _start(self, k: int, task: RefitTask, woodbury: _Woodbury) -> Float[Tensor, " p"]:
        """θ̂ less the first step, whose gradient is known without a pass over the data; displaced tasks have none."""
        if task.displacement is not None:
            return self.theta + task.displacement.to(self.theta)
        if k not in woodbury.slopes and len(task.weights.ids):
            return self.theta
        default = task.weights.default
        gradient = default * (self.gradient - self.penalty) + self.penalty
        if k in woodbury.slopes:
            gradient = gradient + (float(task.weights.values[0]) - default) / self.head.n * woodbury.slopes[k]
        return self.theta - woodbury.step(gradient.unsqueeze(0), torch.tensor([k]))[0]

    def _refit(self, minimum: FitEnd | None, task: RefitTask, seconds: float) -> Refit:
        if minimum is None:
            log.info(
                "chord Newton does not converge for ids %s; they are fitted one by one.", task.weights.ids.tolist()
            )
            return OneByOne(self.refitter).fit([task])[0]
        module = self.refitter.start()
        module.sample_weights = task.weights
        ParamSpace.of(module).write_to(module, minimum.theta)
        return Refit(module, minimum, seconds)


class _Woodbury:
    """H_k⁻¹ of each task that differs from the base in one sample: (H + δ BᵀSB/n)⁻¹, δ the change of its weight.

    Attributes:
        slopes: ∇ℓ_i of that sample, by task.
    """

    def __init__(self, head: LinearHead, factor: PreparedCholesky, tasks: Sequence[RefitTask]) -> None:
        self.factor = factor
        single = [k for k, task in enumerate(tasks) if len(task.weights.ids) == 1]
        self.place = {k: row for row, k in enumerate(single)}
        self.slopes: dict[int, Tensor] = {}
        if not single:
            return
        blocks = SampleBlocks.of(head, [int(tasks[k].weights.ids[0]) for k in single])
        change = blocks.slopes.new_tensor(
            [float(tasks[k].weights.values[0]) - tasks[k].weights.default for k in single]
        )
        self.Y = factor.apply_inverse(blocks.rows.flatten(0, 1)).view_as(blocks.rows)
        scaled = change[:, None, None] / head.n * blocks.second
        identity = torch.eye(scaled.shape[1], dtype=scaled.dtype, device=scaled.device)
        self.inner = torch.linalg.solve(identity + scaled @ (blocks.rows @ self.Y.mT), scaled)
        gradients = torch.einsum("gs,gsp->gp", blocks.slopes, blocks.rows)
        self.slopes = {k: gradients[row] for k, row in self.place.items()}

    def step(self, gradient: Float[Tensor, "k p"], tasks: Tensor) -> Float[Tensor, "k p"]:
        """H_k⁻¹∇J of these tasks."""
        X = self.factor.apply_inverse(gradient)
        mine = [(row, self.place[k]) for row, k in enumerate(tasks.tolist()) if k in self.place]
        if mine:
            rows, places = (torch.tensor(x, device=gradient.device) for x in zip(*mine, strict=True))
            Y = self.Y[places]
            small = self.inner[places] @ (Y @ gradient[rows].unsqueeze(-1))
            X[rows] -= (Y.mT @ small).squeeze(-1)
        return X


def _refuse_costly(head: LinearHead, asked: bool) -> None:
    """A factor that does not fit, or that would cost more than it saves.

    Raises:
        StrategyError: it is one.
    """
    cost, q = head.cost, head.core_size
    if (need := bytes_needed(q, head.dtype)) > FACTOR_BYTES:
        raise StrategyError(f"a factor of q = {q:,} would take {need / 2**30:.1f} GiB")
    worth = (cost.core + q**3 / 3) / (PRODUCTS * cost.product)
    if worth > WORTH and not asked:
        raise StrategyError(f"a factor of q = {q:,} costs as much as {worth:.0f} refits one by one")


def _refuse_unfinished(refitter: Refitter, base: SampleLossModule) -> None:
    """Only a fit that ends at the minimum may be replaced by another way to the minimum.

    Raises:
        StrategyError: it is not one.
    """
    after = refitter.finish.after
    if after == "always":
        return
    if after == "never":
        raise StrategyError("fits are not finished to the minimum (finish.after = never)")
    found = list(optimizers_in(base.configure_optimizers()))
    if not any(isinstance(one, torch.optim.LBFGS) for one in found):
        names = ", ".join(type(one).__name__ for one in found) or "other"
        raise StrategyError(f"{names} fits are not finished to the minimum (finish.after = {after})")


def _trainer(accelerator: str) -> L.Trainer:
    return L.Trainer(
        max_epochs=PASSES,
        accelerator=accelerator,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
