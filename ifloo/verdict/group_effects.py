"""Samples removed together: what their scores predicted for the group, and what happened."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ifloo.objective import Removal
from ifloo.store import JSON, GroupFile, Layout, StoredInfluences
from ifloo.verdict.predictions import predicted


@dataclass(frozen=True)
class GroupEffect:
    """One group and one test loss.

    Attributes:
        id: name of the group.
        n: samples in it.
        predicted: change of the loss, nats: the sum of what is predicted for each sample alone.
        actual: the change after a refit without all of them, nats.
    """

    id: str
    n: int
    predicted: float
    actual: float

    def to_json(self) -> dict[str, JSON]:
        return {"id": self.id, "n": self.n, "predicted": self.predicted, "actual": self.actual}


def group_effects(layout: Layout, stored: StoredInfluences, removal: Removal, base: float) -> tuple[GroupEffect, ...]:
    """The groups refitted for one test, the smallest first.

    Args:
        layout: of the files.
        stored: scores of the test.
        removal: what a refit left out.
        base: its loss after the null refit, nats.

    Raises:
        InputError: a sample has no score, or the file is damaged.
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
