"""What each training sample does to its own loss, into one file: a ranking in which wrong labels stand out."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from ifloo.attribution import (
    InfluenceEngine,
    SelfInfluence,
    certified_self,
    last_layer_self,
    left_out_losses,
    loss_ranking,
    tracin_self,
)
from ifloo.curvature import LinearHead, LinearOperator, as_head
from ifloo.objective.protocol import contract_of
from ifloo.progress import OnProgress, bar, ticking
from ifloo.solvers import Auto, Cholesky, SolveError, Solver
from ifloo.solvers.cholesky import PreparedCholesky, bytes_needed
from ifloo.solvers.tolerances import AUTO_RTOL, default_rtol
from ifloo.stages.scores.engine_choice import HEAD_BYTES, curvature_at
from ifloo.stages.scores.other_methods import MethodRun
from ifloo.stages.settings import AttributionSettings, settings_json
from ifloo.store import JSON, Manifest, Section, StoredSelfInfluence, self_influence, settings_stamp

log = logging.getLogger(__name__)
DAMPING = 1e-3  # of the last layer's curvature, nats per squared parameter: definite under any penalty
GRADIENTS_AT_ONCE = 100  # training samples whose gradients are formed together, p numbers each
CHECKPOINTS = 10  # of the run, for TracIn
FEW_PARAMETERS = 4096  # a matrix from as many products as this, if need be
SECTION = "self_influence"
NO_LAST_LAYER = "self-influence: no last linear layer with weights of its own, so none of it."
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
    """Writes the file, if it is not there; TracIn's only where the training run was recorded.

    Args:
        run: of the methods, on the trained model.
        compared: settings of the model.
        overwrite: replace a file of other settings.

    Raises:
        InputError: there is a file of other settings.
        SolveError: the curvature of the last layer is not positive definite.
    """
    settings = {**compared, "damping": DAMPING, "checkpoints": CHECKPOINTS, **_of_the_scores(run.settings)}
    path = run.layout.self_influence
    manifest = Manifest.at(run.layout.manifest)
    section = Section(manifest, SECTION, settings, {}, [path], run.layout.verdict_files)
    with section.opened(overwrite):
        narrow = _narrow(run)
        if not path.exists() or (narrow.trained.run is not None and self_influence.load(path).tracin is None):
            self_influence.save(path, _stored(narrow, _at_minimum(run), settings_stamp(settings)))


def _of_the_scores(settings: AttributionSettings) -> dict[str, JSON]:
    """The settings of the scores that self-influence has too; none where the scores are not by curvature."""
    if settings.method is not None:
        return {}
    solver = {
        "solver": settings_json(settings.solver),
        "damping": settings.damping,
        "curvature": settings.curvature_name,
    }
    return {"scores": solver}


def _narrow(run: MethodRun) -> MethodRun:
    """The same in batches of rows enough to be fast, and few enough for gradients of each."""
    return replace(run, settings=replace(run.settings, batch_size=min(run.settings.batch_size, GRADIENTS_AT_ONCE)))


@dataclass(frozen=True)
class _Exact:
    """By the curvature and solver of the scores."""

    own: SelfInfluence
    left_out: Tensor | None

    def stored(self) -> dict[str, Any]:
        """Fields of what is written."""
        bound = self.own.error_bound
        return {
            "self_influence": _on_host(self.own.value),
            "left_out_loss": None if self.left_out is None else _on_host(self.left_out),
            "residual": float(self.own.residual.max()),
            "undamped_residual": float(self.own.undamped_residual.max()),
            "error_bound": None if bound is None else float(bound.max()),
        }


def _at_minimum(run: MethodRun) -> _Exact | None:
    """Self-influence as the scores are made, where n solves can be afforded: by a factor, or of a linear head."""
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
    """For n solves; None, with a line that says what they would cost, where there is no cheap way to them."""
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
    known = contract_of(run.module).strong_convexity()
    return InfluenceEngine(objective, theta, curvature, solver, known, None, bar("factor"))


def _solver(asked: Solver, curvature: LinearOperator, n: int) -> Solver:
    """A factor where the choice is free and it can be had: it serves n solves, and the samples left out."""
    if isinstance(asked, Auto):
        cost = curvature.structure.cost
        core = cost.size if as_head(curvature) and cost else None
        fits = (
            curvature.size <= FEW_PARAMETERS if core is None else bytes_needed(core, curvature.dtype) <= asked.max_bytes
        )
        if fits:
            return Cholesky(asked.max_bytes, asked.rtol or default_rtol(AUTO_RTOL, curvature.dtype))
    return asked.resolve(curvature, n)


def _left_out(engine: InfluenceEngine, own: SelfInfluence) -> Tensor | None:
    """The losses of samples left out, of a linear head that each sample passes once, where there is a factor."""
    head, factor = as_head(engine.curvature), engine.prepared
    if head is None or head.chunks[0].inputs.shape[1] > 1 or not isinstance(factor, PreparedCholesky):
        log.info("self-influence: no losses of samples left out, which need a factor of a head that each passes once.")
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
        tracin = _told("tracin", lambda tick: tracin_self(trained, CHECKPOINTS, tick))
    return StoredSelfInfluence(
        train_ids=trained.objective.data.ids.cpu().numpy().astype(np.int64),
        loss=_told("loss", lambda tick: loss_ranking(trained.objective, trained.theta, tick)),
        last_layer=_of_last_layer(run),
        tracin=tracin,
        damping=DAMPING,
        definitions=DEFINITIONS,
        settings=stamp,
        **(exact.stored() if exact else {}),
    )


def _of_last_layer(run: MethodRun) -> NDArray[np.float64] | None:
    """Self-influence in the last layer, in 32 bits: a ranking needs no more, and a vocabulary has a large curvature."""
    layer = last_linear_layer(run.module)
    if layer is None:
        log.info(NO_LAST_LAYER)
        return None
    settings = replace(run.settings, dtype="float32", parameters=[f"{layer}.*"])
    trained = replace(run, module=copy.deepcopy(run.module), settings=settings, recorded=None).trained
    if (need := LinearHead.bytes_kept(trained.objective)) > HEAD_BYTES:
        log.warning("self-influence: none of the last layer, whose curvature would keep %.1f GiB.", need / 2**30)
        return None
    return _told("last layer", lambda tick: last_layer_self(trained.objective, trained.theta, DAMPING, tick=tick))


def last_linear_layer(module: nn.Module) -> str | None:
    """Gives the name of the last linear layer, None where there is none or its weights are not its own."""
    own = {name for name, p in module.named_parameters() if p.requires_grad}  # tied weights go by another name
    layers: list[str] = [name for name, layer in module.named_modules() if name and isinstance(layer, nn.Linear)]
    return layers[-1] if layers and f"{layers[-1]}.weight" in own else None


def _told(name: str, work: Callable[[OnProgress], Tensor]) -> NDArray[np.float64]:
    """Runs it under a bar."""
    with ticking(f"self-influence, {name}", "sample") as tick:
        return _on_host(work(tick))


def _on_host(value: Tensor) -> NDArray[np.float64]:
    return value.double().cpu().numpy()
