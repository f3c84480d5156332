"""Tests with scores that no refit has verified yet: a page shows them, and says so."""

from __future__ import annotations

from collections.abc import Sequence

from ifloo.report.agreements import FEWEST
from ifloo.report.verdict import scores_of
from ifloo.store import NULL_ID, Layout, LossFile, StoredInfluences


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
            found[t] = (scores_of(layout, t), refits)
    return found
