"""Test losses after removal of groups of samples: a JSONL file with one row per group, identified by its name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ifloo.errors import InputError, WorkError
from ifloo.store import jsonl
from ifloo.store.atomic import JSON


@dataclass(frozen=True)
class GroupRow:
    """One refit without a group.

    Attributes:
        id: Name of the group.
        ids: Ids of its samples.
        loss: Test loss, nats.
        grad_norm: ‖∇J‖ at the end of the refit.
        seconds: Duration of the refit, seconds.
    """

    id: str
    ids: Sequence[int]
    loss: float
    grad_norm: float
    seconds: float

    def to_json(self) -> dict[str, JSON]:
        """Returns the row of the file."""
        return {**vars(self), "ids": list(self.ids)}


@dataclass(frozen=True)
class GroupFile:
    """File of the group refits of one test."""

    path: Path

    def done(self) -> dict[str, GroupRow]:
        """Reads the finished rows by name after cutting off a torn last line; raises the same errors as `rows`."""
        jsonl.repair(self.path)
        return self.rows()

    def rows(self) -> dict[str, GroupRow]:
        """Reads the finished rows by name.

        Raises:
            InputError: If a line is not a group refit, or a name occurs twice.
        """
        rows: dict[str, GroupRow] = {}
        for number, content in enumerate(jsonl.read(self.path), start=1):
            row = _row(content)
            if row is None or row.id in rows:
                reason = "not a refit without a group" if row is None else f"group {row.id} occurs twice"
                raise InputError(
                    f"{self.path}, line {number}: {reason}.\n  Delete this line; the next run computes it again."
                )
            rows[row.id] = row
        return rows

    def add(self, row: GroupRow) -> None:
        """Appends one finished refit.

        Raises:
            WorkError: If its loss is not finite, or the disk is full; the file is then unchanged.
        """
        if not math.isfinite(row.loss):
            raise WorkError(
                f"The refit without group {row.id} ended with test loss {row.loss} and was not added to {self.path}.\n"
                "  The refit diverged. Lower the learning rate, or remove smaller groups (refit.groups)."
            )
        jsonl.append(self.path, row.to_json())


def _row(content: dict[str, Any]) -> GroupRow | None:
    try:
        name, ids, loss = content["id"], [int(i) for i in content["ids"]], float(content["loss"])
        return GroupRow(str(name), ids, loss, float(content["grad_norm"]), float(content["seconds"]))
    except (KeyError, TypeError, ValueError):
        return None
