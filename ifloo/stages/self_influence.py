"""What each training sample does to its own loss, into one file: a ranking in which wrong labels stand out."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from ifloo.attribution import last_layer_self, loss_ranking, tracin_self
from ifloo.curvature import LinearHead
from ifloo.curvature.operator import Tick
from ifloo.solvers.progress import ticking
from ifloo.stages.methods import MethodRun
from ifloo.stages.plan import HEAD_BYTES
from ifloo.store import JSON, Manifest, Section, StoredSelfInfluence, self_influence, settings_stamp

log = logging.getLogger(__name__)
DAMPING = 1e-3  # of the last layer's curvature, nats per squared parameter: definite under any penalty
AT_ONCE = 100  # training samples
CHECKPOINTS = 10  # of the run, for TracIn
SECTION = "self_influence"
DEFINITIONS = (
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
    settings: dict[str, JSON] = {**compared, "damping": DAMPING, "checkpoints": CHECKPOINTS}
    path = run.layout.self_influence
    manifest = Manifest.at(run.layout.manifest)
    section = Section(manifest, SECTION, settings, {}, [path], [run.layout.verdict])
    with section.opened(overwrite):
        run = _narrow(run)
        if not path.exists() or (run.trained.run is not None and self_influence.load(path).tracin is None):
            self_influence.save(path, _stored(run, settings_stamp(settings)))


def _narrow(run: MethodRun) -> MethodRun:
    """The same in batches of rows enough to be fast, and few enough for gradients of each."""
    return replace(run, settings=replace(run.settings, batch_size=min(run.settings.batch_size, AT_ONCE)))


def _stored(run: MethodRun, stamp: str) -> StoredSelfInfluence:
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
    )


def _of_last_layer(run: MethodRun) -> NDArray[np.float64] | None:
    """Self-influence in the last layer, in 32 bits: a ranking needs no more, and a vocabulary has a large curvature."""
    layer = _last_layer(run.module)
    if layer is None:
        return None
    settings = replace(run.settings, dtype="float32", parameters=[f"{layer}.*"])
    trained = replace(run, module=copy.deepcopy(run.module), settings=settings, recorded=None).trained
    if (need := LinearHead.bytes_kept(trained.objective)) > HEAD_BYTES:
        log.warning("self-influence: none of the last layer, whose curvature would keep %.1f GiB.", need / 2**30)
        return None
    return _told("last layer", lambda tick: last_layer_self(trained.objective, trained.theta, DAMPING, tick=tick))


def _last_layer(module: nn.Module) -> str | None:
    """The last linear layer that has weights of its own."""
    own = {name for name, p in module.named_parameters() if p.requires_grad}  # tied weights go by another name
    layers = [name for name, layer in module.named_modules() if name and isinstance(layer, nn.Linear)]
    if not layers or f"{layers[-1]}.weight" not in own:
        log.info("self-influence: no last linear layer with weights of its own, so none of it.")
        return None
    return layers[-1]


def _told(name: str, work: Callable[[Tick], Tensor]) -> NDArray[np.float64]:
    """Runs it under a bar."""
    with ticking(f"self-influence, {name}", "sample") as tick:
        return work(tick).double().cpu().numpy()
