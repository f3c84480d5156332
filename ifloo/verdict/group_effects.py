"""Predicted and actual effects of removing groups of samples together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ifloo.objective import Removal
from ifloo.store import JSON, GroupFile, Layout, StoredInfluences
from ifloo.verdict.predictions import predicted


@dataclass(frozen=True)
class GroupEffect:
    """Effect of removing one group on one test loss.

    Attributes:
        id: Name of the group.
        n: Number of samples in the group.
        predicted: Predicted change of the loss, nats: the sum of the predictions for each sample alone.
        actual: Actual change of the loss after a refit without the group, nats.
    """

    id: str
    n: int
    predicted: float
    actual: float

    def to_json(self) -> dict[str, JSON]:
        """Returns the entry of verdict.json."""
        return {"id": self.id, "n": self.n, "predicted": self.predicted, "actual": self.actual}


def group_effects(layout: Layout, stored: StoredInfluences, removal: Removal, base: float) -> tuple[GroupEffect, ...]:
    """Compares prediction and refit of each group refitted for one test, the smallest group first.

    Args:
        layout: Paths of the files.
        stored: Scores of the test.
        removal: Meaning of a removal in the refits.
        base: Test loss after the null refit, nats.

    Raises:
        InputError: If a sample has no score, or the file is damaged.
    """
    rows = GroupFile(layout.group_losses(stored.test_id)).rows().values()
    ordered = sorted(rows, key=lambda row: (len(row.ids), row.id))
    return tuple(
        GroupEffect(
            row.id,
            len(row.ids),
            float(predicted(stored, np.asarray(row.ids, dtype=np.int64), removal).sum()),
            row.loss - base,
        )
        for row in ordered
    )
