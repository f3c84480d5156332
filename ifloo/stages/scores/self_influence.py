"""Self-influence, the effect of each training sample on its own loss: a ranking in which wrong labels stand out."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ifloo.attribution import (
    InfluenceEngine,
    SelfInfluence,
    certified_self,
    last_layer_self,
    left_out_losses,
    loss_ranking,
    tracin_self,
    weighted_definitions,
)
from ifloo.curvature import LinearHead, LinearOperator, as_head
from ifloo.objective import Objective
from ifloo.objective.logits_layer import NoLogitsLayerError, logits_layer
from ifloo.progress import OnProgress, bar, ticking
from ifloo.solvers import Auto, Cholesky, SolveError, Solver
from ifloo.solvers.cholesky import PreparedCholesky, bytes_needed
from ifloo.solvers.tolerances import CHOLESKY_RTOL, default_rtol
from ifloo.stages.scores.engine_choice import HEAD_BYTES, curvature_at, known_convexity
from ifloo.stages.scores.other_methods import MethodRun
from ifloo.stages.settings import AttributionSettings, settings_json
from ifloo.store import JSON, Manifest, Section, StoredSelfInfluence, self_influence, settings_stamp

log = logging.getLogger(__name__)
DAMPING = 1e-3  # damping of the last layer's curvature, nats per squared parameter: positive definite under any penalty
GRADIENTS_AT_ONCE = 100  # training samples whose gradients, p numbers each, are computed together
CHECKPOINTS = 10  # states of the run that TracIn uses
FEW_PARAMETERS = 4096  # largest matrix that is formed from products, one for each column
SECTION = "self_influence"
DEFINITIONS = (
    "self_influence[i]: (1/n) grad l_i^T H^-1 grad l_i with the curvature and damping of the scores, nats: the rise of "
    "the sample's own loss when it is removed, first order in its weight; residual: the worst |b - H x| / |b| of its "
    "solves. left_out_loss[i]: l_i at the weights without i (one Newton step with its leverage counted in), nats. "
    "loss[i]: l_i at the trained weights, nats. last_layer[i]: (1/n) grad l_i^T (H + damping I)^-1 grad l_i over the "
    "last linear layer, in 32 bits, nats: the rise of the sample's own loss when it is removed. tracin[i]: the sum of "
    f"rate * |grad l_i|^2 over steps, at {CHECKPOINTS} states of the run, nats for plain SGD. Large: only the sample "
    "itself speaks for its label."
)


def self_influences(run: MethodRun, compared: dict[str, JSON], overwrite: bool) -> None:
    """Writes the file of self-influence unless it exists; its TracIn values need a recorded training run.

    Args:
        run: Run of the methods on the trained model.
        compared: Settings of the model.
        overwrite: Whether a file of other settings is replaced.

    Raises:
        InputError: The file exists and belongs to other settings.
        SolveError: The curvature of the last layer is not positive definite.
    """
    settings = {**compared, "damping": DAMPING, "checkpoints": CHECKPOINTS, **_score_settings(run.settings)}
    path = run.layout.self_influence
    manifest = Manifest.at(run.layout.manifest)
    section = Section(manifest, SECTION, settings, {}, [path], run.layout.verdict_files)
    with section.opened(overwrite):
        small = _with_small_batches(run)
        if not path.exists() or (small.trained.run is not None and self_influence.load(path).tracin is None):
            self_influence.save(path, _stored(small, _at_minimum(run), settings_stamp(settings)))


def _score_settings(settings: AttributionSettings) -> dict[str, JSON]:
    """Returns the settings of the scores that self-influence shares; empty if the scores are not by curvature."""
    if settings.method is not None:
        return {}
    solver = {
        "solver": settings_json(settings.solver),
        "damping": settings.damping,
        "curvature": settings.curvature_name,
    }
    return {"scores": solver}


def _with_small_batches(run: MethodRun) -> MethodRun:
    """Returns the run with batches that are large enough to be fast and small enough for a gradient of each row."""
    return replace(run, settings=replace(run.settings, batch_size=min(run.settings.batch_size, GRADIENTS_AT_ONCE)))


@dataclass(frozen=True)
class _Exact:
    """Self-influence by the curvature and solver of the scores, and losses of samples left out."""

    own: SelfInfluence
    left_out: Tensor | None

    def stored(self) -> dict[str, Any]:
        """Returns the fields of the stored record."""
        bound = self.own.error_bound
        return {
            "self_influence": _on_host(self.own.value),
            "left_out_loss": None if self.left_out is None else _on_host(self.left_out),
            "residual": float(self.own.residual.max()),
            "undamped_residual": float(self.own.undamped_residual.max()),
            "error_bound": None if bound is None else float(bound.max()),
        }


def _at_minimum(run: MethodRun) -> _Exact | None:
    """Computes self-influence with the curvature of the scores, if n solves are cheap: a factor or a linear head."""
    if run.settings.method is not None:
        return None
    try:
        engine = _engine(run)
        if engine is None:
            return None
        with ticking("self-influence", "sample") as tick:
            own = certified_self(engine, tick)
    except SolveError as error:
        log.warning("self-influence: none by the curvature of the scores. %s", error)
        return None
    worst = float(own.residual.max())
    log.info("self-influence: %d solves by %s, worst residual %.1e.", len(own.value), engine.solver, worst)
    return _Exact(own, _left_out(engine, own))


def _engine(run: MethodRun) -> InfluenceEngine | None:
    """Returns the engine for n solves; None, with a logged estimate of their cost, if they would be expensive."""
    settings, objective, theta = run.settings, run.trained.objective, run.trained.theta
    curvature = curvature_at(settings, objective, theta)
    solver = _solver(settings.solver, curvature, objective.n)
    if as_head(curvature) is None and not isinstance(solver, Cholesky):
        log.info(
            "self-influence: none by the curvature of the scores, which would take %s solves by %s over %s parameters, "
            "each with passes over all data. Attribute one linear layer (attribution.parameters) for it.",
            f"{objective.n:,}",
            type(solver).__name__,
            f"{curvature.size:,}",
        )
        return None
    known = known_convexity(objective, curvature)
    return InfluenceEngine(objective, theta, curvature, solver, known, None, bar("factor"))


def _solver(configured: Solver, curvature: LinearOperator, n: int) -> Solver:
    """Returns `Cholesky` if the solver is `Auto` and the factor fits: it serves n solves and the samples left out."""
    if isinstance(configured, Auto):
        cost = curvature.structure.cost
        core = cost.size if as_head(curvature) and cost else None
        fits = (
            curvature.size <= FEW_PARAMETERS
            if core is None
            else bytes_needed(core, curvature.dtype) <= configured.max_bytes
        )
        if fits:
            return Cholesky(configured.max_bytes, configured.rtol or default_rtol(CHOLESKY_RTOL, curvature.dtype))
    return configured.resolve(curvature, n)


def _left_out(engine: InfluenceEngine, own: SelfInfluence) -> Tensor | None:
    """Computes the losses of samples left out; None unless a factor of a linear head with one row per sample exists."""
    head, factor = as_head(engine.curvature), engine.prepared
    if head is None or head.chunks[0].inputs.shape[1] > 1 or not isinstance(factor, PreparedCholesky):
        log.info(
            "self-influence: no losses of samples left out, which need a factored linear head with one row per sample."
        )
        return None
    try:
        with ticking("losses when left out", "sample") as tick:
            return left_out_losses(head, factor, own, tick)
    except SolveError as error:
        log.warning("self-influence: no losses of samples left out. %s", error)
        return None


def _stored(run: MethodRun, exact: _Exact | None, stamp: str) -> StoredSelfInfluence:
    trained = run.trained
    tracin = None
    if trained.run is not None:
        tracin = _with_bar("tracin", lambda tick: tracin_self(trained, CHECKPOINTS, tick))
    return StoredSelfInfluence(
        train_ids=trained.objective.data.ids.cpu().numpy().astype(np.int64),
        loss=_with_bar("loss", lambda tick: loss_ranking(trained.objective, trained.theta, tick)),
        last_layer=_last_layer(run),
        tracin=tracin,
        damping=DAMPING,
        definitions=weighted_definitions(DEFINITIONS, None if run.objective is None else run.objective.rule),
        settings=stamp,
        **(exact.stored() if exact else {}),
    )


def _last_layer(run: MethodRun) -> NDArray[np.float64] | None:
    """Computes self-influence in the last layer, in 32 bits: enough for a ranking, at half the memory."""
    layer = last_linear_layer(run.trained.objective)
    if layer is None:
        return None
    settings = replace(run.settings, dtype="float32", parameters=[f"{layer}.*"])
    trained = replace(run, module=copy.deepcopy(run.module), settings=settings, recorded=None).trained
    if (need := LinearHead.bytes_kept(trained.objective)) > HEAD_BYTES:
        log.warning("self-influence: none of the last layer, whose curvature would keep %.1f GiB.", need / 2**30)
        return None
    return _with_bar("last layer", lambda tick: last_layer_self(trained.objective, trained.theta, DAMPING, tick=tick))


def last_linear_layer(objective: Objective) -> str | None:
    """Returns the name of the layer that gives the logits; None, with a logged reason, if there is none."""
    _, batch = next(iter(objective.data.with_ids()))
    try:
        return logits_layer(objective.losses.module, batch)
    except NoLogitsLayerError as error:
        log.info("self-influence through the last layer: none. %s", str(error).splitlines()[0])
        return None


def _with_bar(name: str, work: Callable[[OnProgress], Tensor]) -> NDArray[np.float64]:
    """Runs `work` with a progress bar and returns its result on the host."""
    with ticking(f"self-influence, {name}", "sample") as tick:
        return _on_host(work(tick))


def _on_host(value: Tensor) -> NDArray[np.float64]:
    return value.double().cpu().numpy()
