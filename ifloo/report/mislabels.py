"""Training answers made wrong on purpose: how many of them do self-influence and plain loss bring to light?"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ifloo.errors import InputError
from ifloo.report.methods import BASE
from ifloo.store import JSON, Layout, Manifest, StoredSelfInfluence, self_influence, settings_stamp

log = logging.getLogger(__name__)
SECTION = "self_influence"
PARTS = 10  # one in so many rows is looked at


@dataclass(frozen=True)
class Mislabels:
    """What somebody finds who looks at the tenth of the rows that stands first in a ranking.

    Attributes:
        corrupted: rows made wrong.
        looked_at: rows looked at.
        found: corrupted ones among them, by ranking.
        chance: how many are expected in any order.
    """

    corrupted: int
    looked_at: int
    found: Mapping[str, int]
    chance: float

    def to_json(self) -> dict[str, JSON]:
        """An entry of the verdict."""
        return {"corrupted": self.corrupted, "looked_at": self.looked_at, **self.found, "chance": self.chance}


def mislabels(layout: Layout, datamodule: Any) -> Mislabels | None:
    """How many corrupted rows each ranking finds; None where none are known, or there is no self-influence."""
    wrong = list(getattr(datamodule, "corrupted_ids", ()))
    if not wrong or not layout.self_influence.exists():
        return None
    try:
        stored = self_influence.load(layout.self_influence)
        _check(stored, Manifest.at(layout.manifest).sections())
    except InputError as error:
        log.warning("Self-influence is left out of the verdict: %s", error)
        return None
    n = len(stored.train_ids)
    looked_at = max(1, round(n / PARTS))
    is_wrong = np.isin(stored.train_ids, wrong)
    found = {
        name: int(is_wrong[np.argsort(-value, kind="stable")[:looked_at]].sum())
        for name, value in stored.rankings.items()
    }
    return Mislabels(len(wrong), looked_at, found, len(wrong) * looked_at / n)


def _check(stored: StoredSelfInfluence, sections: Mapping[str, Any]) -> None:
    """Pass where it is of the base model that `influence` scored.

    Raises:
        InputError: it is not, or nothing says what it is of.
    """
    again = "  Run `ifloo influence` with --attribution.self_influence true again, with --overwrite."
    compared = sections.get(SECTION, {}).get("compared")
    if compared is None or stored.settings != settings_stamp(compared):
        raise InputError(f"it was made with other settings than the manifest says.\n{again}")
    base = sections.get("influence", {}).get("compared", {})
    for name in BASE:
        if name in compared and name in base and compared[name] != base[name]:
            raise InputError(f"it is of another base model ({name}: {compared[name]}, not {base[name]}).\n{again}")
