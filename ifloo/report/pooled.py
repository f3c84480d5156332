"""All tests together: one set of statistics over the rows of all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ifloo.agreement import Agreement
from ifloo.report.enough import agreed
from ifloo.report.verdict import Comparison
from ifloo.store import JSON


@dataclass(frozen=True)
class Pooled:
    """Statistics over the rows of several tests.

    Attributes:
        tests: their ids.
        groups: of the scores: `all`, `top_k` and `random` rows; None where there are too few.
        methods: of further methods that predicted for each of the tests, all rows; None where nothing varies.
    """

    tests: tuple[int, ...]
    groups: Mapping[str, Agreement | None]
    methods: Mapping[str, Agreement | None]

    def to_json(self) -> dict[str, JSON]:
        """An entry of the verdict."""
        each = {name: found.to_json() if found else None for name, found in self.groups.items()}
        together = each.pop("all") or {}
        methods = {name: found.to_json() if found else None for name, found in self.methods.items()}
        return {"test_ids": list(self.tests), **together, **each, "methods": methods}


def pooled(compared: Mapping[int, Comparison]) -> Pooled | None:
    """Statistics of all tests together; None where there is only one.

    The noise floor is the largest of theirs.
    """
    if len(compared) < 2:
        return None
    tests = list(compared.values())
    predicted, actual = (np.concatenate(part) for part in zip(*((t.predicted, t.actual) for t in tests), strict=True))
    top, control = (np.concatenate(part) for part in zip(*((t.top, t.control) for t in tests), strict=True))
    floor = max(one.noise_floor or 0.0 for one in tests)
    everywhere = [name for name in tests[0].further if all(name in one.further for one in tests)]
    further = {name: np.concatenate([one.further[name] for one in tests]) for name in everywhere}
    chosen = {"all": np.ones(len(actual), dtype=bool), "top_k": top, "random": control}
    return Pooled(
        tests=tuple(compared),
        groups={name: agreed(predicted, actual, floor, rows) for name, rows in chosen.items()},
        methods={name: agreed(by, actual, floor) for name, by in further.items()},
    )
