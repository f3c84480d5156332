"""Training answers made wrong on purpose: how many of them do self-influence and plain loss bring to light?"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ifloo.errors import InputError
from ifloo.store import JSON, Layout, Manifest, StoredSelfInfluence, self_influence, settings_stamp
from ifloo.verdict.base_model import refuse_another

log = logging.getLogger(__name__)
SECTION = "self_influence"
PARTS = 10  # one in so many rows is looked at
NAMES = {
    "self_influence": "self-influence",
    "tracin": "self-influence by tracin",
    "last_layer": "self-influence by last_layer",
    "left_out_loss": "loss when left out",
    "loss": "loss",
}
"""What a reader calls each ranking; plain loss, which the others must beat, is the last."""


@dataclass(frozen=True, eq=False)
class LabelErrors:
    """What somebody finds who looks at the tenth of the rows that stands first in a ranking.

    Attributes:
        corrupted: rows made wrong.
        looked_at: rows looked at.
        found: corrupted ones among them, by ranking.
        chance: how many are expected in any order.
        ranked: by ranking, whether each row is a corrupted one, `[n]`, the row that stands first first.
        residual: the worst relative one of the solves behind `self_influence`; None without it.
    """

    corrupted: int
    looked_at: int
    found: Mapping[str, int]
    chance: float
    ranked: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    residual: float | None = None

    def to_json(self) -> dict[str, JSON]:
        """An entry of the verdict."""
        residual = {} if self.residual is None else {"residual": self.residual}
        counts = {"corrupted": self.corrupted, "looked_at": self.looked_at, **self.found}
        return {**counts, "chance": self.chance, **residual}


def find_label_errors(layout: Layout, wrong: Collection[int]) -> LabelErrors | None:
    """Counts how many of the rows `wrong`, by id, each ranking finds; None without such rows or self-influence."""
    if not wrong or (stored := self_influences(layout)) is None:
        return None
    n = len(stored.train_ids)
    looked_at = max(1, round(n / PARTS))
    is_wrong = np.isin(stored.train_ids, list(wrong))
    ranked = {name: is_wrong[np.argsort(-value, kind="stable")] for name, value in stored.rankings.items()}
    found = {name: int(wrong_ones[:looked_at].sum()) for name, wrong_ones in ranked.items()}
    return LabelErrors(len(wrong), looked_at, found, len(wrong) * looked_at / n, ranked, stored.residual)


def self_influences(layout: Layout) -> StoredSelfInfluence | None:
    """What is stored of the base model that was scored; None where nothing is, or, with a warning, only of another."""
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
    """Pass where it is of the base model that `influence` scored.

    Raises:
        InputError: it is not, or nothing says what it is of.
    """
    again = "  Run `ifloo influence` with --attribution.self_influence true again, with --overwrite."
    compared = sections.get(SECTION, {}).get("compared")
    if compared is None or stored.settings != settings_stamp(compared):
        raise InputError(f"it was made with other settings than the manifest says.\n{again}")
    refuse_another(compared, sections.get("influence", {}).get("compared", {}), "it is", again)
