"""Strategy for linear heads: chord Newton with one factor of the Hessian, many refits at once, certified by ‖∇J‖."""

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
from ifloo.models import Adapted, SampleLossModule
from ifloo.models.fit_settings import optimizers_in
from ifloo.models.hooks import overridden
from ifloo.models.run_state import attached
from ifloo.objective import Objective, scoring
from ifloo.objective.functional import Path
from ifloo.objective.out_of_memory import in_parts
from ifloo.params import ParamSpace
from ifloo.progress import bar
from ifloo.refit.fit_termination import fit_unless_terminated
from ifloo.refit.newton_finish import NewtonFinish, default_tolerance
from ifloo.refit.refitter import Refit, Refitter
from ifloo.refit.strategies.base import OneByOne, RefitStrategy, RefitTask, StrategyError
from ifloo.refit.strategies.chord_module import ChordModule
from ifloo.refit.strategies.replica_weights import ReplicaWeights
from ifloo.refit.trainer_settings import quiet_lightning
from ifloo.solvers import Cholesky
from ifloo.solvers.cholesky import PreparedCholesky, bytes_needed

log = logging.getLogger(__name__)
CHORDS_AT_ONCE = 64  # replicas; a product of [b, d] with [d, 64 c] runs at the speed of large ones
PASSES = 20
FACTOR_BYTES = 4 << 30
PRODUCTS = 130  # cost of a refit one by one, in large products: 33 with the Hessian, at a quarter of their speed
WORTH = 30  # refits one by one; a factor that costs more than these is computed only if refit.replicas is given


class ChordReplicas(RefitStrategy):
    """Refits a linear head from its minimum by chord Newton: Newton steps with a fixed Hessian.

    One factor of the base Hessian H is used by all replicas and all passes over the data. The Hessian of the removed
    sample is subtracted by Woodbury's identity, so a step errs only by the change of the curvature along it. A replica
    whose ‖∇J‖ does not halve in a pass is fitted one by one.

    Source: Ortega & Rheinboldt 1970, section 7.1.
    """

    name: ClassVar[str] = "chord Newton with one factor"
    words: ClassVar[str] = "by Newton steps from the base model"

    def __init__(self, refitter: Refitter, max_at_once: int | None = None) -> None:
        """Checks that the model is a linear head and starts at its minimum.

        Args:
            refitter: Refitter of the base fit.
            max_at_once: Number of replicas trained together; None stands for 64.

        Raises:
            StrategyError: If the model is not a single linear head, does not start at its minimum, is not fitted to its
                minimum, or if the factor is too large or costs more than it saves.
        """
        self.refitter, self.max_at_once = refitter, max_at_once or CHORDS_AT_ONCE
        self.base = refitter.start()
        self.tolerance = refitter.finish.tolerance or default_tolerance(ParamSpace.of(self.base).dtype)
        _refuse_unfinished(refitter, self.base)
        if isinstance(self.base, Adapted) and len(self.base.shares.ids):
            raise StrategyError("J weighs its samples unequally")
        with quiet_lightning():
            self.base.to(_trainer(refitter.trainer_settings.accelerator).strategy.root_device)
        objective = Objective.of(self.base, refitter.loader(), batch_size=refitter.finish.batch_size)
        self.theta = objective.losses.theta()
        with scoring(self.base):
            self.gradient = objective.gradient(self.theta)
            self.penalty = grad(objective.losses.penalty)(self.theta)
        if not float(self.gradient.norm()) <= 10 * self.tolerance:
            raise StrategyError(
                f"refits start at |grad J| = {float(self.gradient.norm()):.1e}, not at the minimum of the base model"
            )
        if objective.losses.path is Path.LOOP:
            raise StrategyError("its losses are taken of one sample at a time")
        if (need := LinearHead.bytes_kept(objective)) > FACTOR_BYTES:
            raise StrategyError(f"the head's inputs and output curvatures would take {need / 2**30:.1f} GiB")
        try:
            self.head = LinearHead(objective, self.theta)
        except InputError as error:
            raise StrategyError(str(error).splitlines()[0]) from error
        _refuse_costly(self.head, asked=max_at_once is not None)

    @cached_property
    def factor(self) -> PreparedCholesky:
        """Factor of the base Hessian, computed once."""
        return Cholesky(max_bytes=FACTOR_BYTES).prepare(self.head, bar("factor"))

    def prepare(self, base: SampleLossModule) -> None:
        """Computes the factor; these refits need no preconditioner."""
        _ = self.factor

    def removal_steps(self, base: SampleLossModule, count: int, seed: int) -> Float[Tensor, "k p"]:
        """Computes (1/n) H⁻¹∇ℓ_j of `count` random samples j."""
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randint(self.head.n, (count,), generator=generator)
        blocks = SampleBlocks.of(self.head, self.head.objective.data.ids[drawn].tolist())
        return self.factor.apply_inverse(torch.einsum("gs,gsp->gp", blocks.slopes, blocks.rows)) / self.head.n

    def fit(self, tasks: Sequence[RefitTask]) -> list[Refit]:
        refits, self.max_at_once = in_parts(tasks, self.max_at_once, self._train, "replicas")
        return refits

    def _train(self, tasks: Sequence[RefitTask]) -> list[Refit]:
        begun = time.perf_counter()
        inverse = _Woodbury(self.head, self.factor, tasks)
        theta = torch.stack([self._start(k, task, inverse) for k, task in enumerate(tasks)])
        weights = ReplicaWeights.of([task.weights for task in tasks], theta.device)
        module = ChordModule(self.head, theta, weights, inverse.step, self.tolerance)
        with quiet_lightning():
            fit_unless_terminated(_trainer(self.refitter.trainer_settings.accelerator), module)
        seconds = (time.perf_counter() - begun) / len(tasks)
        return [self._refit(minimum, task, seconds) for minimum, task in zip(module.minima, tasks, strict=True)]

    def _start(self, k: int, task: RefitTask, inverse: _Woodbury) -> Float[Tensor, " p"]:
        """Computes where a replica starts.

        The start is θ̂ minus the first step, whose gradient needs no pass over the data. Displaced tasks start at θ̂ plus
        their displacement, groups at θ̂.
        """
        if task.displacement is not None:
            return self.theta + task.displacement.to(self.theta)
        if k not in inverse.gradients and len(task.weights.ids):
            return self.theta
        default = task.weights.default
        gradient = default * (self.gradient - self.penalty) + self.penalty
        if k in inverse.gradients:
            gradient = gradient + (float(task.weights.values[0]) - default) / self.head.n * inverse.gradients[k]
        return self.theta - inverse.step(gradient.unsqueeze(0), torch.tensor([k]))[0]

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
    """Applies H_k⁻¹ of each task: (H + δ BᵀSB/n)⁻¹, δ the change of the weight, if it changes one sample; else H⁻¹.

    Attributes:
        factor: Factor of the base Hessian H.
        row_of: Row in `Y` and `inner` of each task that changes one sample, by task.
        gradients: Gradient ∇ℓ_i of that sample, by task.
        Y: H⁻¹Bᵀ of these samples, transposed, `[g, s, p]`.
        inner: The inner matrix of Woodbury's identity, `[g, s, s]`.
    """

    def __init__(self, head: LinearHead, factor: PreparedCholesky, tasks: Sequence[RefitTask]) -> None:
        self.factor = factor
        single = [k for k, task in enumerate(tasks) if len(task.weights.ids) == 1]
        self.row_of = {k: row for row, k in enumerate(single)}
        self.gradients: dict[int, Tensor] = {}
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
        self.gradients = {k: gradients[row] for k, row in self.row_of.items()}

    def step(self, gradient: Float[Tensor, "k p"], tasks: Tensor) -> Float[Tensor, "k p"]:
        """Computes H_k⁻¹∇J of the tasks with these numbers."""
        X = self.factor.apply_inverse(gradient)
        single = [(row, self.row_of[k]) for row, k in enumerate(tasks.tolist()) if k in self.row_of]
        if single:
            rows, samples = (torch.tensor(x, device=gradient.device) for x in zip(*single, strict=True))
            Y = self.Y[samples]
            small = self.inner[samples] @ (Y @ gradient[rows].unsqueeze(-1))
            X[rows] -= (Y.mT @ small).squeeze(-1)
        return X


def _refuse_costly(head: LinearHead, asked: bool) -> None:
    """Checks that the factor fits into memory and, unless `asked` for, does not cost more than it saves.

    Raises:
        StrategyError: If it does not fit, or costs more.
    """
    cost, q = head.cost, head.core_size
    if (need := bytes_needed(q, head.dtype)) > FACTOR_BYTES:
        raise StrategyError(f"a factor of q = {q:,} would take {need / 2**30:.1f} GiB")
    worth = (cost.core + q**3 / 3) / (PRODUCTS * cost.product)
    if worth > WORTH and not asked:
        raise StrategyError(f"a factor of q = {q:,} costs as much as {worth:.0f} refits one by one")


def _refuse_unfinished(refitter: Refitter, base: SampleLossModule) -> None:
    """Checks that the fits end at the minimum of J; only then may another method that ends there replace them.

    Raises:
        StrategyError: If they do not.
    """
    after = refitter.finish.after
    if overridden(refitter.finish, ["end_fit"], NewtonFinish):
        raise StrategyError(f"{type(refitter.finish).__name__} overrides end_fit, which chord Newton would not call")
    if after == "always":
        return
    if after == "never":
        raise StrategyError("fits are not finished to the minimum (finish.after = never)")
    with attached(base, refitter.stand_in()):
        optimizers = list(optimizers_in(base.configure_optimizers()))
    if not any(isinstance(one, torch.optim.LBFGS) for one in optimizers):
        names = ", ".join(type(one).__name__ for one in optimizers) or "other"
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
