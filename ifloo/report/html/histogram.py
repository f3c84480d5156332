"""The distribution of the scores as bars that a page can draw without a script."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ifloo.report.html.numbers import compact, counted, signed
from ifloo.store import StoredInfluences

BINS = 40  # to each side of 0


@dataclass(frozen=True)
class Bar:
    """Scores between two ends; places and heights in hundredths of the picture, the height on a log scale."""

    left: float
    width: float
    height: float
    kind: str
    told: str


@dataclass(frozen=True)
class Histogram:
    """All scores of a test.

    Attributes:
        bars: `helpful` ones left of the middle, `harmful` ones right of it.
        strokes: places of the scores of largest size, hundredths, with their kind.
        lines: heights and counts of the powers of ten.
        low: the left end, as text; `high` the right one.
        high: the right end.
        helpful: how many scores are negative.
        harmful: how many are positive.
        zero: how many are 0.
    """

    bars: Sequence[Bar]
    strokes: Sequence[tuple[float, str]]
    lines: Sequence[tuple[float, str]]
    low: str
    high: str
    helpful: int
    harmful: int
    zero: int


def histogram(stored: StoredInfluences, k: int) -> Histogram:
    """Bars over all n scores, in nats per unit weight, and strokes for the `k` of largest size."""
    values = stored.scores.astype(np.float64)
    reach = float(np.abs(values).max(initial=0.0)) or 1.0
    edges = np.linspace(-reach, reach, 2 * BINS + 1)
    edges[BINS] = 0.0
    counts, _ = np.histogram(values[values != 0], edges)
    # One sample is a bar of its own height, not none: the scale starts below 1. There is room above the highest.
    scale = math.log10(max(int(counts.max()), 1) / 0.7) / 0.94
    bars = [
        Bar(
            left=50 + 50 * low / reach,
            width=50 / BINS,
            height=100 * math.log10(count / 0.7) / scale,
            kind="helpful" if high <= 0 else "harmful",
            told=f"{counted(count, 'sample')} between {signed(low)} and {signed(high)}",
        )
        for low, high, count in zip(edges[:-1].tolist(), edges[1:].tolist(), counts.tolist(), strict=True)
        if count
    ]
    largest = values[np.argsort(-np.abs(values), kind="stable")[:k]]
    powers = [10**e for e in range(int(math.log10(max(int(counts.max()), 1))) + 1)]
    return Histogram(
        bars=bars,
        strokes=[(50 + 50 * s / reach, "helpful" if s < 0 else "harmful") for s in largest.tolist() if s],
        lines=[(100 * math.log10(count / 0.7) / scale, f"{count:,}") for count in powers],
        low=compact(-reach),
        high=signed(reach),
        helpful=int((values < 0).sum()),
        harmful=int((values > 0).sum()),
        zero=int((values == 0).sum()),
    )
