"""Predicted changes for the removals that were refitted: by the scores, and by other methods on the same rows."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ifloo.attribution import predicted_change
from ifloo.errors import InputError
from ifloo.objective import Removal
from ifloo.objective.ids import positions_of
from ifloo.store import CORRECTED, Layout, Manifest, StoredInfluences, influences, removals, settings_stamp
from ifloo.verdict.base_model import check_base_model

log = logging.getLogger(__name__)
Predictions = dict[str, NDArray[np.float64]]


def predictions(layout: Layout, stored: StoredInfluences, ids: NDArray[np.int64], removal: Removal) -> Predictions:
    """Predicts the change of one test loss on removal of each id by every other method with stored scores.

    A method whose scores belong to another base model than `stored` is left out with a warning.

    Args:
        layout: Paths of the files.
        stored: Influence scores of the test.
        ids: Ids of the removed samples, `[r]`.
        removal: Meaning of a removal in the refits.

    Returns:
        Predicted changes, `[r]`, nats, by method name; NaN for ids without a prediction. Leverage-corrected removals
        come first, then the methods in the order of their names.
    """
    sections = Manifest.at(layout.manifest).sections()
    found = _corrected(layout, stored, ids, removal)
    for name, path in layout.existing_methods(stored.test_id).items():
        try:
            scores = influences.load(path)
            _check(scores, stored.test_id, sections, f"methods/{name}")
            found[name] = predicted(scores, ids, removal)
        except InputError as error:
            log.warning("Method %s is left out of the verdict on test %d: %s", name, stored.test_id, error)
    return found


def predicted(stored: StoredInfluences, ids: NDArray[np.int64], removal: Removal) -> NDArray[np.float64]:
    """Predicts the change of the test loss on removal of each id, `[r]`, nats.

    Raises:
        InputError: If an id has no score.
    """
    rows = positions(stored, ids)
    return np.asarray(predicted_change(stored.scores[rows].astype(np.float64), _centre(stored, rows), removal))  # type: ignore[arg-type]


def _centre(stored: StoredInfluences, rows: NDArray[np.int64]) -> NDArray[np.float64] | float:
    """Returns what dropping a sample adds to its prediction: n·c_i times the mean score, its share of the others."""
    return stored.score_mean if stored.factors is None else stored.factors[rows] * stored.score_mean


def positions(stored: StoredInfluences, ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Finds the positions of these ids among the scores.

    Raises:
        InputError: If an id has no score.
    """
    if (unknown := ids[~np.isin(ids, stored.train_ids)]).size:
        raise InputError(
            f"Test {stored.test_id}: refits of ids {unknown[:5].tolist()} have no score: they are of other data.\n"
            "  Run `ifloo influence` and `ifloo loo` on the same data."
        )
    return positions_of(torch.tensor(stored.train_ids), ids.tolist()).numpy()


def _check(scores: StoredInfluences, test_id: int, sections: Mapping[str, Any], section: str) -> None:
    """Checks that scores belong to this test and to the base model that `influence` scored.

    Raises:
        InputError: If they do not, or the manifest does not record their settings.
    """
    remedy = "  Score it again with this method, with --overwrite."
    if section not in sections:
        raise InputError(f"the manifest has no section {section!r} to say what its scores are of.\n{remedy}")
    compared = sections[section]["compared"]
    if scores.test_id != test_id or scores.settings != settings_stamp(compared):
        raise InputError(f"its scores were made with other settings than the manifest says.\n{remedy}")
    check_base_model(compared, sections.get("influence", {}).get("compared", {}), "its scores are", remedy)


def _corrected(layout: Layout, stored: StoredInfluences, ids: NDArray[np.int64], removal: Removal) -> Predictions:
    path: Path = layout.removals(stored.test_id)
    if not path.exists():
        return {}
    if (found := removals.load(path)).settings != stored.settings or found.test_id != stored.test_id:
        log.warning("%s belongs to other scores and is left out; run `ifloo influence` again.", path)
        return {}
    effects = dict(zip(found.ids.tolist(), found.effects.tolist(), strict=True))
    by_id = np.array([effects.get(i, np.nan) for i in ids.tolist()])
    return {CORRECTED: by_id + (_centre(stored, positions(stored, ids)) if removal == "drop" else 0.0)}
