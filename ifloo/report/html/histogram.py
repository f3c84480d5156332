"""Histogram of the scores as bars that a page can draw without a script."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ifloo.report.html.numbers import compact, counted, signed
from ifloo.store import StoredInfluences

BINS = 40  # number of bins on each side of 0


@dataclass(frozen=True)
class Bar:
    """One bar of the histogram; lengths in hundredths of the picture, the height on a log scale.

    Attributes:
        left: Position of the left edge.
        width: Width of the bar.
        height: Height of the bar.
        kind: `helpful` or `harmful`.
        title: Description of the bar: count and limits.
    """

    left: float
    width: float
    height: float
    kind: str
    title: str


@dataclass(frozen=True)
class Histogram:
    """All scores of a test.

    Attributes:
        bars: Bars, `helpful` ones left of the middle, `harmful` ones right of it.
        strokes: Positions of the scores of largest size, hundredths, with their kind.
        lines: Heights (hundredths) and labels of the powers of ten.
        low: Left end of the axis, as text.
        high: Right end of the axis, as text.
        helpful: Number of negative scores.
        harmful: Number of positive scores.
        zero: Number of scores equal to 0.
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
    """Computes bars of all n scores, nats per unit weight, and strokes for the `k` scores of largest size."""
    values = stored.scores.astype(np.float64)
    reach = float(np.abs(values).max(initial=0.0)) or 1.0
    edges = np.linspace(-reach, reach, 2 * BINS + 1)
    edges[BINS] = 0.0
    counts, _ = np.histogram(values[values != 0], edges)
    # The scale starts below 1, so that a bar of one sample is visible; the highest bar leaves some room above.
    scale = math.log10(max(int(counts.max()), 1) / 0.7) / 0.94
    bars = [
        Bar(
            left=50 + 50 * low / reach,
            width=50 / BINS,
            height=100 * math.log10(count / 0.7) / scale,
            kind="helpful" if high <= 0 else "harmful",
            title=f"{counted(count, 'sample')} between {signed(low)} and {signed(high)}",
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
