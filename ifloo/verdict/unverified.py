"""Tests with scores but too few refits for a verdict; the page shows them as not verified."""

from __future__ import annotations

from collections.abc import Sequence

from ifloo.store import NULL_ID, Layout, LossFile, StoredInfluences
from ifloo.verdict.agreements import MIN_REFITS
from ifloo.verdict.comparison import scores_of


def unverified_tests(layout: Layout, test_ids: Sequence[int]) -> dict[int, tuple[StoredInfluences, int]]:
    """Reads scores and number of refits of each test that has too few refits for a verdict, by test id.

    Raises:
        InputError: If the scores of such a test are missing or were computed with other settings than the manifest's,
            or its file of refits is damaged.
    """
    found = {}
    for t in test_ids:
        rows = LossFile(layout.loo_losses(t)).rows()
        refits = len(rows) - (NULL_ID in rows)
        if NULL_ID not in rows or refits < MIN_REFITS:
            found[t] = (scores_of(layout, t), refits)
    return found
