"""Data of the page's scatter plot: every refit as a point, with the prediction of each method."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from ifloo.agreement import Agreement
from ifloo.report.figures import KINDS
from ifloo.report.html.found import ALL, Groups
from ifloo.report.html.samples import Album
from ifloo.report.html.views import label
from ifloo.report.methods import SCORES
from ifloo.report.pooled import Pooled
from ifloo.report.verdict import Comparison
from ifloo.store import JSON

Tests = Mapping[int, Comparison]


def points(compared: Tests, together: Pooled | None, statistics: Mapping[str, Groups], album: Album) -> dict[str, JSON]:
    """Returns the refits of all tests with their statistics, as JSON values.

    A point is `[test id, training id, kind, actual, predicted by the first method, by the second, ...]`, nats, null
    if a method has no prediction. Thumbnails are given to the points of largest actual change first. Raises the same
    errors as `Album.of_training`.
    """
    methods = list(dict.fromkeys([SCORES, *(name for one in compared.values() for name in one.further)]))
    for _, id_ in sorted(_sizes(compared), reverse=True):
        album.of_training(id_, pictures=1)
    return {
        "kinds": {kind: name for kind, (_, _, name) in KINDS.items()},
        "methods": [label(name) for name in methods],
        "points": [row for t, one in compared.items() for row in _rows(t, one, methods)],
        "views": _views(compared, together, statistics, methods),
    }


def _sizes(compared: Tests) -> list[tuple[float, int]]:
    return [
        pair for one in compared.values() for pair in zip(np.abs(one.actual).tolist(), one.ids.tolist(), strict=True)
    ]


def _rows(t: int, one: Comparison, methods: list[str]) -> list[JSON]:
    missing = np.full(len(one.ids), math.nan)
    predictions = [one.predicted if name == SCORES else one.further.get(name, missing) for name in methods]
    columns = [one.ids.tolist(), one.kinds, one.actual.tolist(), *(x.tolist() for x in predictions)]
    return [[t, id_, kind, *map(_finite, rest)] for id_, kind, *rest in zip(*columns, strict=True)]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _views(
    compared: Tests, together: Pooled | None, statistics: Mapping[str, Groups], methods: list[str]
) -> list[JSON]:
    views: list[JSON] = []
    if together:
        floor = max(one.noise_floor or 0.0 for one in compared.values())
        views.append({"key": ALL, "floor": floor, "fits": _fits(statistics[ALL], together.methods, methods)})
    for t, one in compared.items():
        further = {name: found["all"] for name, found in one.methods().items()}
        views.append({"key": str(t), "floor": one.noise_floor, "fits": _fits(statistics[str(t)], further, methods)})
    return views


def _fits(groups: Groups, further: Mapping[str, Agreement | None], methods: list[str]) -> list[JSON]:
    found = [groups["all"] if name == SCORES else further.get(name) for name in methods]
    return [None if one is None else one.to_json() for one in found]
