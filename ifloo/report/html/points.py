"""Data of the page's scatter plot: every refit as a point, with the prediction of each method."""

from __future__ import annotations

import math

import numpy as np

from ifloo.report.figures.influence import KINDS
from ifloo.report.html.samples import SampleCache
from ifloo.report.html.views import ALL, by_key
from ifloo.store import JSON
from ifloo.verdict import SCORES, Comparison, Statistics, Verdict, method_label


def points(verdict: Verdict, album: SampleCache) -> dict[str, JSON]:
    """Returns the refits of all tests with their statistics, as JSON values.

    A point is `[test id, training id, kind, actual, predicted by the first method, by the second, ...]`, nats, null
    if a method has no prediction. Thumbnails are given to the points of largest actual change first. Raises the same
    errors as `SampleCache.of_training`.
    """
    methods = list(dict.fromkeys([SCORES, *(name for one in verdict.values() for name in one.other_methods)]))
    for _, id_ in sorted(_sizes(verdict), reverse=True):
        album.of_training(id_, pictures=1)
    return {
        "kinds": {kind: name for kind, (_, _, name) in KINDS.items()},
        "methods": [method_label(name) for name in methods],
        "points": [row for t, one in verdict.items() for row in _rows(t, one, methods)],
        "views": _views(verdict, methods),
    }


def _sizes(verdict: Verdict) -> list[tuple[float, int]]:
    return [
        pair for one in verdict.values() for pair in zip(np.abs(one.actual).tolist(), one.ids.tolist(), strict=True)
    ]


def _rows(t: int, one: Comparison, methods: list[str]) -> list[JSON]:
    missing = np.full(len(one.ids), math.nan)
    predictions = [one.predicted if name == SCORES else one.other_methods.get(name, missing) for name in methods]
    columns = [one.ids.tolist(), one.kinds, one.actual.tolist(), *(x.tolist() for x in predictions)]
    return [[t, id_, kind, *map(_finite, rest)] for id_, kind, *rest in zip(*columns, strict=True)]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _views(verdict: Verdict, methods: list[str]) -> list[JSON]:
    floors = {str(t): one.noise_floor for t, one in verdict.items()}
    floors[ALL] = max((floor or 0.0 for floor in floors.values()), default=0.0)
    return [{"key": key, "floor": floors[key], **_fits(found, methods)} for key, found in by_key(verdict).items()]


def _fits(statistics: Statistics, methods: list[str]) -> dict[str, JSON]:
    """Returns the statistics of each method, and the reason if a method has none."""
    by_method = {row.method: row for row in statistics.by_method}
    found = [by_method.get(name) for name in methods]
    return {
        "fits": [row.to_json() if row else None for row in found],
        "reasons": [row.reason if row else "not predicted for each of these tests" for row in found],
    }
