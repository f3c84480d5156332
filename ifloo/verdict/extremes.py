"""Most helpful and most harmful training samples of a test sample, for tables and pictures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ifloo.store import StoredInfluences

SHOWN = 8  # largest number of training samples of each kind


@dataclass(frozen=True)
class Extremes:
    """Positions of the extreme scores among all n, the largest size first.

    Attributes:
        helpful: Positions of the most negative scores.
        harmful: Positions of the most positive scores.
    """

    helpful: list[int]
    harmful: list[int]

    @classmethod
    def of(cls, stored: StoredInfluences) -> Extremes:
        """Finds at most `SHOWN` positions of each kind; scores of 0 are of neither kind."""
        order, scores = np.argsort(stored.scores, kind="stable"), stored.scores
        low, high = order[:SHOWN].tolist(), order[::-1][:SHOWN].tolist()
        return cls([k for k in low if scores[k] < 0], [k for k in high if scores[k] > 0])
