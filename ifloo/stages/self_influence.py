"""What each training sample does to its own loss, into one file: a ranking in which wrong labels stand out."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from ifloo.attribution import Trained, last_layer_self, loss_ranking, tracin_self
from ifloo.stages.methods import MethodRun
from ifloo.store import JSON, Manifest, Section, StoredSelfInfluence, self_influence, settings_stamp

log = logging.getLogger(__name__)
DAMPING = 1e-3  # of the last layer's curvature, nats per squared parameter: definite under any penalty
CHECKPOINTS = 10  # of the run, for TracIn
SECTION = "self_influence"
DEFINITIONS = (
    "loss[i]: l_i at the trained weights, nats. last_layer[i]: (1/n) grad l_i^T (H + damping I)^-1 grad l_i over the "
    "last linear layer, nats, the rise of the sample's own loss when it is removed. tracin[i]: the sum over steps of "
    f"rate * |grad l_i|^2, taken at {CHECKPOINTS} states of the run, nats for plain SGD. Large: only the sample itself "
    "speaks for its label."
)

Tick = Callable[[int, int], None]


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
        if not path.exists() or (run.trained.run is not None and self_influence.load(path).tracin is None):
            self_influence.save(path, _stored(run.trained, settings_stamp(settings)))


def _stored(trained: Trained, stamp: str) -> StoredSelfInfluence:
    objective, theta = trained.objective, trained.theta
    layer = _last_layer(objective.losses.module)
    tracin = last = None
    if trained.run is not None:
        tracin = _told("tracin", lambda tick: tracin_self(trained, CHECKPOINTS, tick))
    if layer is not None:
        last = _told("last layer", lambda tick: last_layer_self(objective, theta, DAMPING, [f"{layer}.*"], tick))
    return StoredSelfInfluence(
        train_ids=objective.data.ids.cpu().numpy().astype(np.int64),
        loss=_told("loss", lambda tick: loss_ranking(objective, theta, tick)),
        last_layer=last,
        tracin=tracin,
        damping=DAMPING,
        definitions=DEFINITIONS,
        settings=stamp,
    )


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
    with tqdm(desc=f"self-influence, {name}", unit="sample", leave=False, mininterval=0.5) as bar:

        def tick(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return work(tick).double().cpu().numpy()
