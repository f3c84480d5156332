"""The training samples that matter most to a test sample, as tables and pictures show them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ifloo.store import StoredInfluences

SHOWN = 8  # training samples of each kind


@dataclass(frozen=True)
class Extremes:
    """Places among the n scores, the largest size first.

    Attributes:
        helpful: of the most negative scores; none of 0.
        harmful: of the most positive ones; none of 0.
    """

    helpful: list[int]
    harmful: list[int]

    @classmethod
    def of(cls, stored: StoredInfluences) -> Extremes:
        """At most `SHOWN` of each kind."""
        order, scores = np.argsort(stored.scores, kind="stable"), stored.scores
        low, high = order[:SHOWN].tolist(), order[::-1][:SHOWN].tolist()
        return cls([at for at in low if scores[at] < 0], [at for at in high if scores[at] > 0])
