"""Tests with scores that no refit has verified yet: a page shows them, and says so."""

from __future__ import annotations

from collections.abc import Sequence

from ifloo.errors import InputError
from ifloo.report.enough import FEWEST
from ifloo.store import NULL_ID, Layout, LossFile, Manifest, StoredInfluences, influences, settings_stamp


def unverified(layout: Layout, test_ids: Sequence[int]) -> dict[int, tuple[StoredInfluences, int]]:
    """The scores of the tests whose refits are too few for a verdict, and how many refits they have, by test id.

    Raises:
        InputError: the scores of such a test are missing or were made with other settings than the manifest says, or
            its file of refits is damaged.
    """
    found = {}
    for t in test_ids:
        rows = LossFile(layout.loo_losses(t)).rows()
        refits = len(rows) - (NULL_ID in rows)
        if NULL_ID not in rows or refits < FEWEST:
            found[t] = (_scores(layout, t), refits)
    return found


def _scores(layout: Layout, t: int) -> StoredInfluences:
    stored = influences.load(layout.scores(t))
    made_with = Manifest.at(layout.manifest).sections().get("influence", {}).get("compared", {})
    if stored.settings != settings_stamp(made_with):
        raise InputError(
            f"{layout.scores(t)} was made with other settings than {layout.manifest} says.\n"
            "  Run `ifloo influence` for this test again, with --overwrite."
        )
    return stored
