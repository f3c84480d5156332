"""Statistics over the rows of several tests together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ifloo.store import JSON
from ifloo.verdict.agreements import SCORES, Selection, Statistics, rows_of
from ifloo.verdict.comparison import Comparison


@dataclass(frozen=True)
class Pooled:
    """Statistics over the rows of several tests.

    Attributes:
        tests: Ids of the tests.
        statistics: Statistics of the scores for each selection of refits, and of other methods that predicted for
            each of the tests for all refits.
    """

    tests: tuple[int, ...]
    statistics: Statistics

    def to_json(self) -> dict[str, JSON]:
        """Returns the entry of verdict.json."""
        all_refits, *others = self.statistics.scores
        return {
            "test_ids": list(self.tests),
            **(all_refits.to_json() or {}),
            **{row.selection: row.to_json() for row in others},
            "methods": {row.method: row.to_json() for row in self.statistics.other_methods},
        }


def pooled(compared: Mapping[int, Comparison]) -> Pooled | None:
    """Computes the statistics of all tests together, with the largest of their noise floors; None for a single test.

    Args:
        compared: Comparison of each test, by its id.
    """
    if len(compared) < 2:
        return None
    tests = list(compared.values())
    predicted = np.concatenate([one.predicted for one in tests])
    actual = np.concatenate([one.actual for one in tests])
    floor = max(one.noise_floor or 0.0 for one in tests)
    selections = {name: np.concatenate([one.selections[name] for one in tests]) for name in tests[0].selections}
    all_refits: dict[Selection, np.ndarray] = {"all": selections["all"]}
    rows = [*rows_of(SCORES, predicted, actual, selections, floor)]
    for name in tests[0].other_methods:
        if all(name in one.other_methods for one in tests):
            by_method = np.concatenate([one.other_methods[name] for one in tests])
            rows += rows_of(name, by_method, actual, all_refits, floor)
    return Pooled(tuple(compared), Statistics(tuple(rows)))
