"""Influence functions as they are used where J has no minimum at hand: another curvature, damped, or few parameters."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor, nn

from ifloo.attribution.engine import InfluenceEngine
from ifloo.attribution.head import HeadProducts
from ifloo.attribution.method import Method, TrainedModel
from ifloo.attribution.recorded import HOW_TO_RECORD, RecordedRun, training_time
from ifloo.attribution.scores import Scores
from ifloo.curvature import Damped, GaussNewton, LinearHead, LinearOperator, as_head
from ifloo.errors import InputError
from ifloo.objective.batches import Batch, batch_size, concatenate_chunks
from ifloo.objective.functional import scoring
from ifloo.objective.objective import Objective, attributed
from ifloo.objective.protocol import contract_of
from ifloo.progress import OnProgress, no_progress
from ifloo.solvers import CG, Solver

log = logging.getLogger(__name__)
HEAD_BYTES = 4 << 30  # of inputs and output curvatures that a linear head may keep


@dataclass(frozen=True)
class InfluenceFunction(Method):
    """−(1/n) ∇L_tᵀ (C + δI)⁻¹ ∇ℓ_i at θ̂, nats per unit weight, C a curvature of J with its penalty.

    Residuals, on the full data, are of the damped system and of the undamped one.

    Source: Koh & Liang 2017, arXiv:1703.04730, eq. (2); Gauss-Newton in place of the Hessian: Martens 2014,
    arXiv:1412.1193. δ = 1/Σ rates: training for a time τ = Σ rates fits a direction of curvature h by 1 − exp(−τh),
    and a ridge of 1/τ by h/(h + 1/τ) (Ali, Kolter & Tibshirani 2019, arXiv:1810.10082).

    Attributes:
        label: `name` of these settings, such as `gauss_newton`, `last_layer`, `lissa`.
        curvature: C of an objective at θ: `GaussNewton`, `Hessian`, `LinearHead`.
        damping: δ, nats per squared parameter; None: one over how far the recorded run went, Σ learning rate x gain of
            the update (`training_time`).
        solver: of (C + δI) x = ∇L_t.
        parameters: shell-style patterns of the parameters θ consists of; the others stay at θ̂. `*`: those of the
            objective.
    """

    label: str
    curvature: Callable[[Objective, Tensor], LinearOperator] = GaussNewton
    damping: float | None = None
    solver: Solver = field(default_factory=CG)
    parameters: tuple[str, ...] = ("*",)

    @property
    def name(self) -> str:
        return self.label

    @property
    def needs_run(self) -> bool:
        return self.damping is None

    def scores(self, trained: TrainedModel, queries: Batch, tick: OnProgress = no_progress) -> Scores:
        module = trained.objective.losses.module
        refuse_decoupled(module, self.label)
        damping = self._damping(trained.run)
        with attributed(trained.objective, trained.theta, self.parameters) as (objective, theta), scoring(module):
            self._refuse_large_head(objective)
            operator = self.curvature(objective, theta)
            curvature = Damped(operator, damping) if damping else operator
            head = as_head(curvature)
            solver = self.solver.resolve(curvature, batch_size(queries))
            by = HeadProducts(head) if head else None
            engine = InfluenceEngine(objective, theta, curvature, solver, None, by)
            directions = engine.directions(queries)
            chunks = (engine.of(directions, chunk) for chunk in engine.products.chunks())
            value = concatenate_chunks(chunks, objective.n, tick)
        return Scores(value, objective.data.ids, directions.query_ids, directions.certificate)

    def _refuse_large_head(self, objective: Objective) -> None:
        made = self.curvature
        # The command line wraps a class into a partial of its settings.
        if LinearHead not in (made.args if isinstance(made, functools.partial) else (made,)):
            return
        if (need := LinearHead.bytes_kept(objective)) > HEAD_BYTES:
            raise InputError(
                f"{self.label}: a LinearHead of {objective.n:,} training samples would keep {need / 2**30:.1f} GiB of "
                f"inputs and output curvatures, allowed are {HEAD_BYTES / 2**30:.1f} GiB.\n"
                "  Train on fewer samples, or use curvature GaussNewton with solver CG: the same matrix, nothing kept."
            )

    def _damping(self, run: RecordedRun | None) -> float:
        if self.damping is not None:
            return self.damping
        if run is None:
            raise InputError(
                f"{self.label} takes its damping from the learning rates of the training run, and this model comes "
                f"without one.\n  Give damping, in nats per squared parameter (0 at a minimum of J). {HOW_TO_RECORD}, "
                "and it is found."
            )
        found = 1 / training_time(run)
        log.info("%s: damping %.3g, one over the sum of the learning rates of %d steps.", self.label, found, run.steps)
        return found


def refuse_decoupled(module: nn.Module, label: str) -> None:
    """Curvature is that of J, which does not hold what an optimizer does beside the gradient.

    Raises:
        InputError: the model was trained with decoupled weight decay.
    """
    decay = contract_of(module).decoupled_decay
    if decay > 0:
        raise InputError(
            f"{label} inverts the curvature of J, and this model was trained with a decoupled weight decay of "
            f"{decay:g}: the decay is part of the optimizer's step and not of J, so that the curvature would be that "
            "of another function.\n"
            "  Use the unrolled method, which differentiates the steps themselves, or put the decay into `penalty`."
        )
