"""Callback that finishes a fit at the minimum of J by Newton steps, or measures where the fit ended."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Literal

import lightning as L
import torch
from torch.utils.data import DataLoader

from ifloo.errors import InputError, WorkError
from ifloo.minimize.newton_cg import Evaluation, FitEnd, NewtonSystem, newton_cg
from ifloo.minimize.trust_region import trust_region
from ifloo.models import Adapted, SampleLossModule
from ifloo.objective import Batch, FunctionalLosses, Objective, TrainingData, scoring
from ifloo.objective.epoch_weights import epoch_weights
from ifloo.objective.loaders import unwrap_loader
from ifloo.objective.objective import have_finite_losses, weighted_data
from ifloo.objective.paths import Choice, choose_path
from ifloo.objective.protocol import contract_of
from ifloo.objective.sampling import refuse_rows_apart
from ifloo.objective.seeded_draws import bytes_of
from ifloo.params import DTYPES, ParamSpace
from ifloo.solvers import Nystrom, Preconditioner, SolveError

logger = logging.getLogger(__name__)
HALFWAY_FACTOR = 1e-3  # share of the first ‖∇J‖ at which the preconditioner is computed again if J is not convex
DEFAULT_TOLERANCE = {
    torch.float64: 1e-10,  # Newton steps end at 1e-12 where the terms of the gradient are near 1
    torch.float32: 3e-6,  # fifty rounding errors of such terms; their sum over the samples has about that error
}


def default_tolerance(dtype: torch.dtype) -> float:
    """Returns the default tolerance of ‖∇J‖ in a precision; precisions below 32 bits have that of float32."""
    return DEFAULT_TOLERANCE.get(dtype, DEFAULT_TOLERANCE[torch.float32])


def training_loader(trainer: L.Trainer) -> DataLoader[Batch]:
    """Returns the training loader of a fit.

    Raises:
        InputError: If the fit has several loaders, or one that is not a DataLoader.
    """
    if isinstance(trainer.train_dataloader, DataLoader):
        return trainer.train_dataloader
    raise InputError(
        f"J runs over the samples of one DataLoader; this fit has a {type(trainer.train_dataloader).__name__}.\n"
        "  Return one torch.utils.data.DataLoader (torch.utils.data.ConcatDataset joins datasets)."
    )


class NewtonFinish(L.Callback):
    """Takes Newton steps on J(θ; w) after training until ‖∇J‖ is small, or only measures ‖∇J‖ (`after`).

    The steps are those of `newton_cg` if the module declares J strongly convex, else those of `trust_region`. One
    instance may be used for many fits on the same training data: it keeps the data and the preconditioner. A subclass
    may override `end_fit`, by which the base fit and every refit end; refits call no other hook.

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
        """Stores the settings.

        Args:
            after: Fits to finish; `lbfgs` finishes those of L-BFGS, the optimizer that minimises a fixed J.
            tolerance: ‖∇J‖ to reach; null stands for 1e-10 in float64 and 3e-6 in float32.
            max_steps: Largest number of Newton steps.
            preconditioner: Preconditioner of the inner CG; null stands for `Nystrom()`.
            keep_graph: Whether to keep each linearisation for the whole inner solve (twice as fast; needs memory for
                all activations).
            inner_dtype: Precision of the inner CG; null stands for that of the weights. float32 halves the cost of CG
                and needs a second copy of the data; ‖∇J‖ is still measured in the precision of the weights.
            batch_size: Number of samples per batch.

        Raises:
            InputError: If the tolerance is not positive.
        """
        if tolerance is not None and not tolerance > 0:
            raise InputError(f"finish.tolerance must be > 0, got {tolerance}.")
        self.after, self.tolerance, self.max_steps = after, tolerance, max_steps
        self.preconditioner = preconditioner or Nystrom()
        self.keep_graph, self.inner_dtype, self.batch_size = keep_graph, inner_dtype, batch_size
        self.minimum: FitEnd | None = None
        self._data: TrainingData | None = None
        self._choice: Choice | None = None
        self._data_key: tuple[object, ...] = ()
        self._inner: NewtonSystem | None = None

    def __getstate__(self) -> dict[str, object]:
        """Returns the settings, and the state of a subclass; another process loads the data itself."""
        return {**vars(self), "minimum": None, "_data": None, "_choice": None, "_data_key": (), "_inner": None}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.minimum = None  # so that an interrupted fit does not have the result of the last one

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.minimum = self.end_fit(trainer, pl_module)

    def end_fit(self, trainer: L.Trainer, module: L.LightningModule) -> FitEnd:
        """Takes a module whose training has ended to the minimum of J, or only measures J and ‖∇J‖ at its weights.

        Args:
            trainer: Trainer that trained the module.
            module: Trained module; its weights become those of the end.

        Returns:
            The end of the fit.

        Raises:
            WorkError: If the Newton steps do not reach the tolerance.
        """
        space = ParamSpace.of(module)
        objective = self.objective(module, training_loader(trainer))
        theta = space.values_of(module)
        with scoring(module):
            if self._moves(trainer):
                try:
                    end = self._finish(objective, theta)
                except WorkError as error:
                    raise WorkError(f"{error}\n  {self._remedies(module)}") from error
                space.write_to(module, end.theta)
            else:
                value, gradient = objective.value_and_gradient(theta)
                end = FitEnd(theta, float(value), float(gradient.norm()), 0, 0)
        if trainer.logger is not None:
            trainer.logger.log_metrics({"fit/J": end.value, "fit/grad_norm": end.grad_norm}, step=trainer.global_step)
        return end

    def _remedies(self, module: L.LightningModule) -> str:
        """Returns the sentences on what else can be done where the Newton steps do not reach the tolerance."""
        penalty = "--adapt.l2 0.001" if isinstance(module, Adapted) else "that of the model"
        convex = contract_of(module).strong_convexity() is not None
        longer = f"Longer: --finish.max_steps {4 * self.max_steps}, or train further before."
        if convex:
            return longer
        return (
            f"{longer} Curved where it is flat: a larger penalty ({penalty}). The steps move all trained parameters, "
            "whatever attribution.parameters names: freeze the others (requires_grad_(False)) and a last layer alone "
            "has a minimum. Without a minimum: --finish.after never, and scores of a damped curvature "
            "(--attribution.damping; ifloo doctor names one)."
        )

    def _moves(self, trainer: L.Trainer) -> bool:
        """Returns whether Newton steps follow a fit with this Trainer."""
        lbfgs = any(isinstance(o, torch.optim.LBFGS) for o in trainer.optimizers)
        return self.after == "always" or (self.after == "lbfgs" and lbfgs)

    def objective(self, module: L.LightningModule, loader: DataLoader[Batch]) -> Objective:
        """Returns J(θ; w) of a module with its sample weights; the data are loaded once and kept.

        Raises:
            InputError: If the module is not a `SampleLossModule`, or one whose J runs over every sample, and the loader
                draws part of them.
        """
        if not isinstance(module, SampleLossModule):
            raise InputError(
                f"A fit is finished on a SampleLossModule, which knows the weights of its samples; got a "
                f"{type(module).__name__}.\n  Wrap it: ifloo.models.Adapted(module)."
            )
        space = ParamSpace.of(module)
        if not isinstance(module, Adapted):
            refuse_rows_apart(loader)
        stated = (module.shares, module.batch_weights) if isinstance(module, Adapted) else ()
        counted = None if any(len(one.ids) for one in stated) or not stated else epoch_weights(loader)
        found = [x for one in stated for x in (one.ids, one.values)] + ([] if counted is None else [counted.shares])
        key = (unwrap_loader(loader)[0], space.device, space.dtype, *(bytes(bytes_of(x)) for x in found))
        if self._data is None or self._data_key != key:
            self._inner = None  # its preconditioner is of the former data, on their device
            self._choice = choose_path(FunctionalLosses(module, space), loader)
            data = TrainingData(
                self._choice.loader(loader, self.batch_size),
                space.device,
                space.dtype,
                accepts=have_finite_losses(self._choice.losses),
            )
            if isinstance(module, Adapted):
                weights = module.weights_of(data.ids) or counted
                data = data if weights is None else weighted_data(data, weights)
            self._data, self._data_key = data, key
        assert self._choice is not None
        return Objective(self._choice.of(module, space), self._data, module.sample_weights)

    def prepare(self, module: L.LightningModule, loader: DataLoader[Batch]) -> None:
        """Computes the preconditioner at the module's weights, so that fits do not depend on their order."""
        objective = self.objective(module, loader)
        with scoring(module):
            self._inner = self._prepared_inner(objective, objective.losses.theta())

    def solve(self, objective: Objective, B: torch.Tensor, rtol: float) -> torch.Tensor:
        """Computes H⁻¹B, `[k, p]`, at the weights of the objective's module, with the inner CG of the Newton steps.

        Raises:
            SolveError: If the Hessian is not positive definite, or the inner CG cannot reach `rtol` in its precision.
        """
        theta = objective.losses.theta()
        self._inner = self._inner or self._prepared_inner(objective, theta)
        return self._inner.solve(objective, theta, B, rtol).require().value.to(B.dtype)

    def _finish(self, objective: Objective, theta: torch.Tensor) -> FitEnd:
        tolerance = self.tolerance or default_tolerance(theta.dtype)
        convex = objective.losses.contract.strong_convexity() is not None
        evaluation = objective.value_and_gradient(theta)
        start: Evaluation | None = evaluation
        if self._inner is None and (norm := float(evaluation[1].norm())) > tolerance:
            self._inner = self._prepared_inner(objective, theta) if convex else self._inner_here(objective, theta)
            if not convex and (halfway := HALFWAY_FACTOR * norm) > tolerance:
                # On the way the Hessian moves away from that of the start, whose preconditioner helps less and less.
                way = trust_region(objective, theta, halfway, self.max_steps, self._inner, start, tolerance)
                theta, start = way.theta, None
                self._inner = self._inner_here(objective, theta)
        minimise = newton_cg if convex else trust_region
        return minimise(objective, theta, tolerance, self.max_steps, self._inner, start)

    def _inner_here(self, objective: Objective, theta: torch.Tensor) -> NewtonSystem:
        """Builds the inner system, with a preconditioner only if the Hessian at `theta` is positive definite."""
        try:
            return self._prepared_inner(objective, theta)
        except SolveError as error:
            logger.info("finish: no preconditioner. %s", str(error).splitlines()[0])
            return self._plain_inner(theta)

    def _prepared_inner(self, objective: Objective, theta: torch.Tensor) -> NewtonSystem:
        """Builds the inner system with a preconditioner of the Hessian at `theta`.

        All fits share it: a preconditioner of other weights changes only the number of CG steps.
        """
        inner = self._plain_inner(theta)
        return replace(inner, preconditioner=self.preconditioner.prepare(inner.hessian(objective, theta)))

    def _plain_inner(self, theta: torch.Tensor) -> NewtonSystem:
        assert self._data is not None
        dtype = DTYPES[self.inner_dtype] if self.inner_dtype else theta.dtype
        data = (
            None
            if dtype == theta.dtype
            else TrainingData(self._data.loader, theta.device, dtype, accepts=self._data.accepts)
        )
        return NewtonSystem(None, self.keep_graph, data)
