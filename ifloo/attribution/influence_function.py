"""Influence functions away from a minimum of J: with another curvature, damping, or a subset of the parameters."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

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
HEAD_BYTES = 4 << 30  # largest memory for the inputs and output curvatures that a linear head keeps


@dataclass(frozen=True)
class InfluenceFunction(Method):
    """−(1/n) ∇L_tᵀ (C + δI)⁻¹ ∇ℓ_i at θ̂, nats per unit weight, C a curvature of J with its penalty.

    The certificate holds the residuals, on the full data, of both the damped and the undamped system.

    Source: Koh & Liang 2017, arXiv:1703.04730, eq. (2); Gauss-Newton in place of the Hessian: Martens 2014,
    arXiv:1412.1193. δ = 1/Σ rates: training for a time τ = Σ rates fits a direction of curvature h by 1 − exp(−τh),
    and a ridge of 1/τ by h/(h + 1/τ) (Ali, Kolter & Tibshirani 2019, arXiv:1810.10082).

    Attributes:
        label: Name of the method with these settings, such as `gauss_newton`, `last_layer`, `lissa`.
        curvature: Class that builds C from an objective and θ: `GaussNewton`, `Hessian`, `LinearHead`.
        damping: δ, nats per squared parameter. None takes one over the training time of the recorded run, the sum of
            learning rate x gain of the update (`training_time`).
        solver: Solver of (C + δI) x = ∇L_t.
        parameters: Shell-style patterns of the parameters that θ consists of; all others stay at θ̂. `*` matches every
            parameter of the objective.
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
            products = HeadProducts(head) if head else None
            bound = head.lower_bound if head else None
            engine = InfluenceEngine(objective, theta, curvature, solver, bound, products, tick)
            directions = engine.directions(queries)
            chunks = (engine.of(directions, chunk) for chunk in engine.products.chunks())
            value = concatenate_chunks(chunks, objective.n, tick)
        return Scores(value, objective.data.ids, directions.query_ids, directions.certificate, objective.factors)

    def _refuse_large_head(self, objective: Objective) -> None:
        curvature = self.curvature
        # The command line wraps a class into a partial of its settings.
        if LinearHead not in (curvature.args if isinstance(curvature, functools.partial) else (curvature,)):
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
                "to have it computed."
            )
        delta = 1 / training_time(run)
        log.info("%s: damping %.3g, one over the sum of the learning rates of %d steps.", self.label, delta, run.steps)
        return delta


def refuse_decoupled(module: object, label: str) -> None:
    """Checks that the optimizer decays no weights outside of J, since the curvature of J does not contain such a decay.

    Raises:
        InputError: If the model was trained with decoupled weight decay.
    """
    decay = contract_of(module).decoupled_decay
    if decay > 0:
        raise InputError(
            f"{label} inverts the curvature of J, and this model was trained with a decoupled weight decay of "
            f"{decay:g}: the decay is part of the optimizer's step and not of J, so that the curvature would be that "
            "of another function.\n"
            "  Use the unrolled method, which differentiates the steps themselves, or put the decay into `penalty`."
        )
