"""The callback that finishes a fit at the minimum of its J, and measures the end of any."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Literal

import lightning as L
import torch
from torch.utils.data import DataLoader

from ifloo.errors import InputError
from ifloo.minimize.newton_cg import Evaluation, FitEnd, NewtonSystem, newton_cg
from ifloo.minimize.trust_region import trust_region
from ifloo.models import SampleLossModule
from ifloo.objective import Batch, FunctionalLosses, Objective, TrainingData, scoring, sequential
from ifloo.objective.loaders import unwrap_loader
from ifloo.params import DTYPES, ParamSpace
from ifloo.solvers import Nystrom, Preconditioner, SolveError

logger = logging.getLogger(__name__)
NEARER = 1e-3  # of ‖∇J‖: where the preconditioner is made anew, where J is not convex
REACHABLE = {
    torch.float64: 1e-10,  # Newton steps end at 1e-12 where the terms of the gradient are near 1
    torch.float32: 3e-6,  # fifty roundings of such terms, which their sum over the samples does not get below
}


def reachable(dtype: torch.dtype) -> float:
    """Gives the ‖∇J‖ that a fit is brought to by default; precisions below 32 bits are asked for no more than 32."""
    return REACHABLE.get(dtype, REACHABLE[torch.float32])


def training_loader(trainer: L.Trainer) -> DataLoader[Batch]:
    """The one training loader of a fit.

    Raises:
        InputError: there are several, or something else.
    """
    if isinstance(trainer.train_dataloader, DataLoader):
        return trainer.train_dataloader
    raise InputError(
        f"J runs over the samples of one DataLoader; this fit has a {type(trainer.train_dataloader).__name__}.\n"
        "  Return one torch.utils.data.DataLoader (torch.utils.data.ConcatDataset joins datasets)."
    )


class NewtonFinish(L.Callback):
    """After training: Newton steps on the same J(θ; w) to a small ‖∇J‖, or ‖∇J‖ measured where that is not asked for.

    Where the module knows that J is strongly convex the steps are those of `newton_cg`, elsewhere of `trust_region`.

    One instance may serve many fits on the same training data: the data and the preconditioner are kept.

    Attributes:
        minimum: End of the last fit of a Trainer that has this callback; None before it.
    """

    def __init__(
        self,
        after: Literal["lbfgs", "always", "never"] = "lbfgs",
        tolerance: float | None = None,
        max_steps: int = 100,
        preconditioner: Preconditioner | None = None,
        keep_graph: bool = True,
        inner_dtype: Literal["float32", "float64"] | None = None,
        batch_size: int = 5000,
    ) -> None:
        """Settings.

        Args:
            after: which fits to finish; L-BFGS is what minimises a fixed J.
            tolerance: ‖∇J‖ to reach; None: 1e-10 in float64, 3e-6 in float32.
            max_steps: Newton steps.
            preconditioner: of the inner CG; None: `Nystrom()`.
            keep_graph: keep each linearisation for the whole inner solve (twice as fast; memory of all activations).
            inner_dtype: precision of the inner CG; null: that of the weights. float32 halves its cost, and with a
                second copy of the data; ‖∇J‖ is measured in the precision of the weights all the same.
            batch_size: samples at once.

        Raises:
            InputError: the tolerance is not positive.
        """
        if tolerance is not None and not tolerance > 0:
            raise InputError(f"finish.tolerance must be > 0, got {tolerance}.")
        self.after, self.tolerance, self.max_steps = after, tolerance, max_steps
        self.preconditioner = preconditioner or Nystrom()
        self.keep_graph, self.inner_dtype, self.batch_size = keep_graph, inner_dtype, batch_size
        self.minimum: FitEnd | None = None
        self._data: TrainingData | None = None
        self._of: tuple[object, ...] = ()
        self._inner: NewtonSystem | None = None

    def __reduce__(self) -> tuple[type[NewtonFinish], tuple[object, ...]]:
        """The settings alone: another process reads its own data."""
        settings = self.after, self.tolerance, self.max_steps, self.preconditioner
        return type(self), (*settings, self.keep_graph, self.inner_dtype, self.batch_size)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.minimum = None  # a fit that does not reach its end has none

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.minimum = self.end_fit(trainer, pl_module)

    def end_fit(self, trainer: L.Trainer, module: L.LightningModule) -> FitEnd:
        """Takes the module of a Trainer whose training has ended to the minimum of J, or measures where it is.

        Returns:
            End of the fit, whose weights the module then has.

        Raises:
            WorkError: The tolerance was not reached.
        """
        space = ParamSpace.of(module)
        objective = self.objective(module, training_loader(trainer))
        theta = space.values_of(module)
        with scoring(module):
            if self._moves(trainer):
                end = self._finish(objective, theta)
                space.write_to(module, end.theta)
            else:
                value, gradient = objective.value_and_gradient(theta)
                end = FitEnd(theta, float(value), float(gradient.norm()), 0, 0)
        if trainer.logger is not None:
            trainer.logger.log_metrics({"fit/J": end.value, "fit/grad_norm": end.grad_norm}, step=trainer.global_step)
        return end

    def _moves(self, trainer: L.Trainer) -> bool:
        """Returns whether Newton steps follow a fit by this Trainer."""
        lbfgs = any(isinstance(o, torch.optim.LBFGS) for o in trainer.optimizers)
        return self.after == "always" or (self.after == "lbfgs" and lbfgs)

    def objective(self, module: L.LightningModule, loader: DataLoader[Batch]) -> Objective:
        """J(θ; w) of a module under its own sample weights; the data are read once and kept.

        Raises:
            InputError: the module has no sample weights.
        """
        if not isinstance(module, SampleLossModule):
            raise InputError(
                f"A fit is finished on a SampleLossModule, which knows the weights of its samples; got a "
                f"{type(module).__name__}.\n  Wrap it: ifloo.models.Adapted(module)."
            )
        space = ParamSpace.of(module)
        wanted = (unwrap_loader(loader)[0], space.device, space.dtype)
        if self._data is None or self._of != wanted:
            self._inner = None  # it is of these data, and lives where they live
            self._data = TrainingData(sequential(loader, self.batch_size), space.device, space.dtype)
            self._of = wanted
        return Objective(FunctionalLosses(module, space), self._data, module.sample_weights)

    def prepare(self, module: L.LightningModule, loader: DataLoader[Batch]) -> None:
        """Makes the preconditioner at the module's weights, so that fits do not depend on which of them came first."""
        objective = self.objective(module, loader)
        with scoring(module):
            self._inner = self._prepared_inner(objective, objective.losses.theta())

    def solve(self, objective: Objective, B: torch.Tensor, rtol: float) -> torch.Tensor:
        """H⁻¹B at the weights of the objective's module, `[k, p]`, as Newton steps solve it.

        Raises:
            SolveError: the Hessian is not positive definite, or rtol is out of reach in the precision of the inner CG.
        """
        theta = objective.losses.theta()
        self._inner = self._inner or self._prepared_inner(objective, theta)
        return self._inner.solve(objective, theta, B, rtol).require().value.to(B.dtype)

    def _finish(self, objective: Objective, theta: torch.Tensor) -> FitEnd:
        tolerance = self.tolerance or reachable(theta.dtype)
        convex = objective.losses.contract.strong_convexity() is not None
        start: Evaluation | None = objective.value_and_gradient(theta)
        if self._inner is None and (norm := float(start[1].norm())) > tolerance:
            self._inner = self._prepared_inner(objective, theta) if convex else self._inner_here(objective, theta)
            if not convex and (halfway := NEARER * norm) > tolerance:
                # The Hessian of the start is not that of the minimum: its preconditioner would do less and less.
                theta, start = trust_region(objective, theta, halfway, self.max_steps, self._inner, start).theta, None
                self._inner = self._inner_here(objective, theta)
        minimise = newton_cg if convex else trust_region
        return minimise(objective, theta, tolerance, self.max_steps, self._inner, start)

    def _inner_here(self, objective: Objective, theta: torch.Tensor) -> NewtonSystem:
        """With a preconditioner where the Hessian is positive definite, and without one elsewhere."""
        try:
            return self._prepared_inner(objective, theta)
        except SolveError as error:
            logger.info("finish: no preconditioner. %s", error)
            return self._plain_inner(theta)

    def _prepared_inner(self, objective: Objective, theta: torch.Tensor) -> NewtonSystem:
        """Shared by all fits: where the preconditioner was made changes the number of steps only."""
        inner = self._plain_inner(theta)
        return replace(inner, preconditioner=self.preconditioner.prepare(inner.hessian(objective, theta)))

    def _plain_inner(self, theta: torch.Tensor) -> NewtonSystem:
        assert self._data is not None
        wanted = DTYPES[self.inner_dtype] if self.inner_dtype else theta.dtype
        data = None if wanted == theta.dtype else TrainingData(self._data.loader, theta.device, wanted)
        return NewtonSystem(None, self.keep_graph, data)
