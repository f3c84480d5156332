"""The verdict on several tests: the comparison of each, and one set of statistics over the rows of all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ifloo.store import JSON
from ifloo.verdict.agreements import SCORES, Selection, Statistics, rows_of
from ifloo.verdict.comparison import DEFINITIONS, Comparison
from ifloo.verdict.label_errors import LabelErrors


@dataclass(frozen=True)
class Pooled:
    """Statistics over the rows of several tests.

    Attributes:
        tests: Ids of the tests.
        statistics: Statistics of the scores for each selection of refits, and of further methods that predicted for
            each of the tests for all refits.
    """

    tests: tuple[int, ...]
    statistics: Statistics

    def to_json(self) -> dict[str, JSON]:
        """An entry of the verdict."""
        together, *others = self.statistics.scores
        return {
            "test_ids": list(self.tests),
            **(together.to_json() or {}),
            **{row.selection: row.to_json() for row in others},
            "methods": {row.method: row.to_json() for row in self.statistics.further},
        }


def pooled(compared: Mapping[int, Comparison]) -> Pooled | None:
    """Statistics of all tests together; None where there is only one.

    The noise floor is the largest of theirs.
    """
    if len(compared) < 2:
        return None
    tests = list(compared.values())
    predicted = np.concatenate([one.predicted for one in tests])
    actual = np.concatenate([one.actual for one in tests])
    floor = max(one.noise_floor or 0.0 for one in tests)
    selections = {name: np.concatenate([one.selections[name] for one in tests]) for name in tests[0].selections}
    everything: dict[Selection, np.ndarray] = {"all": selections["all"]}
    rows = [*rows_of(SCORES, predicted, actual, selections, floor)]
    for name in tests[0].further:
        if all(name in one.further for one in tests):
            by = np.concatenate([one.further[name] for one in tests])
            rows += rows_of(name, by, actual, everything, floor)
    return Pooled(tuple(compared), Statistics(tuple(rows)))


@dataclass(frozen=True, eq=False)
class Verdict(Mapping[int, Comparison]):
    """The comparison of each test by its id, and what holds of all of them; every output formats this one object.

    Attributes:
        tests: Comparison of each test, by its id.
        mislabels: Number of wrong labels that each ranking finds; None where no label is known to be wrong.
    """

    tests: Mapping[int, Comparison]
    mislabels: LabelErrors | None = None

    def __getitem__(self, test_id: int) -> Comparison:
        return self.tests[test_id]

    def __iter__(self) -> Iterator[int]:
        return iter(self.tests)

    def __len__(self) -> int:
        return len(self.tests)

    @cached_property
    def together(self) -> Pooled | None:
        """Statistics of all tests together, calculated once; None where there is only one test."""
        return pooled(self.tests)

    @property
    def statistics(self) -> Statistics | None:
        """Statistics of all tests together, or of the one there is; None without any."""
        if self.together is not None:
            return self.together.statistics
        return next((one.statistics for one in self.tests.values()), None)

    def to_json(self) -> dict[str, JSON]:
        """The content of verdict.json."""
        return {
            "tests": {str(t): one.to_json() for t, one in self.tests.items()},
            **({"all_tests": self.together.to_json()} if self.together else {}),
            **({"mislabels": self.mislabels.to_json()} if self.mislabels else {}),
            "definitions": DEFINITIONS,
        }
