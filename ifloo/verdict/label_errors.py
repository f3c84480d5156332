"""Detection of known label errors: how many of them do rankings by self-influence and by plain loss find?"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ifloo.errors import InputError
from ifloo.store import JSON, Layout, Manifest, StoredSelfInfluence, self_influence, settings_stamp
from ifloo.verdict.base_model import check_base_model

log = logging.getLogger(__name__)
SECTION = "self_influence"
PARTS = 10  # a tenth of the rows is checked
NAMES = {
    "self_influence": "self-influence",
    "tracin": "self-influence by tracin",
    "last_layer": "self-influence by last_layer",
    "left_out_loss": "loss when left out",
    "loss": "loss",
}
"""Name of each ranking in outputs; plain loss, which the other rankings must beat, comes last."""


@dataclass(frozen=True, eq=False)
class LabelErrors:
    """Number of label errors found by checking the first tenth of the rows of each ranking.

    Attributes:
        corrupted: Number of rows whose label was made wrong on purpose.
        rows_checked: Number of rows checked.
        found: Number of corrupted rows among the rows checked, by ranking.
        chance: Expected number of corrupted rows among them in a random order.
        ranked: Mask of the corrupted rows in the order of each ranking, `[n]`, by ranking.
        residual: Worst relative residual of the solves behind `self_influence`; None without that ranking.
    """

    corrupted: int
    rows_checked: int
    found: Mapping[str, int]
    chance: float
    ranked: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    residual: float | None = None

    def to_json(self) -> dict[str, JSON]:
        """Returns the entry of verdict.json."""
        residual = {} if self.residual is None else {"residual": self.residual}
        counts = {"corrupted": self.corrupted, "looked_at": self.rows_checked, **self.found}
        return {**counts, "chance": self.chance, **residual}


def find_label_errors(stored: StoredSelfInfluence | None, wrong: Collection[int]) -> LabelErrors | None:
    """Counts how many of the wrong rows each ranking finds.

    Args:
        stored: Self-influences of the base model that was scored; None if none are stored.
        wrong: Ids of the rows whose label is known to be wrong.

    Returns:
        The counts; None if no label is known to be wrong, or no self-influence is stored.
    """
    if not wrong or stored is None:
        return None
    n = len(stored.train_ids)
    rows_checked = max(1, round(n / PARTS))
    is_wrong = np.isin(stored.train_ids, list(wrong))
    ranked = {name: is_wrong[np.argsort(-value, kind="stable")] for name, value in stored.rankings.items()}
    found = {name: int(mask[:rows_checked].sum()) for name, mask in ranked.items()}
    return LabelErrors(len(wrong), rows_checked, found, len(wrong) * rows_checked / n, ranked, stored.residual)


def self_influences(layout: Layout) -> StoredSelfInfluence | None:
    """Reads the self-influences of the base model that was scored.

    Returns:
        The stored values; None if there are none, or, with a warning, if they belong to another base model.
    """
    if not layout.self_influence.exists():
        return None
    try:
        stored = self_influence.load(layout.self_influence)
        _check(stored, Manifest.at(layout.manifest).sections())
    except InputError as error:
        log.warning("Self-influence is left out of the verdict: %s", error)
        return None
    return stored


def _check(stored: StoredSelfInfluence, sections: Mapping[str, Any]) -> None:
    """Checks that self-influences belong to the base model that `influence` scored.

    Raises:
        InputError: If they belong to another base model, or the manifest does not record their settings.
    """
    remedy = "  Run `ifloo influence` with --attribution.self_influence true again, with --overwrite."
    compared = sections.get(SECTION, {}).get("compared")
    if compared is None or stored.settings != settings_stamp(compared):
        raise InputError(f"it was made with other settings than the manifest says.\n{remedy}")
    check_base_model(compared, sections.get("influence", {}).get("compared", {}), "it is", remedy)
