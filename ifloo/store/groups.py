"""Test losses after groups of samples were removed: one row per group, told by its name."""

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
        id: name of the group.
        ids: its samples.
        loss: of the test, nats.
        grad_norm: ‖∇J‖ at the end of the refit.
        seconds: of the refit.
    """

    id: str
    ids: Sequence[int]
    loss: float
    grad_norm: float
    seconds: float

    def to_json(self) -> dict[str, JSON]:
        return {**vars(self), "ids": list(self.ids)}


@dataclass(frozen=True)
class GroupFile:
    """A file of groups of one test."""

    path: Path

    def done(self) -> dict[str, GroupRow]:
        """The finished rows by name; a torn last line is cut off first. Errors as those of `rows`."""
        jsonl.repair(self.path)
        return self.rows()

    def rows(self) -> dict[str, GroupRow]:
        """The finished rows by name.

        Raises:
            InputError: a line is no such row, or a name stands there twice.
        """
        rows: dict[str, GroupRow] = {}
        for number, content in enumerate(jsonl.read(self.path), start=1):
            row = _row(content)
            if row is None or row.id in rows:
                reason = "not a refit without a group" if row is None else f"group {row.id} stands there twice"
                raise InputError(
                    f"{self.path}, line {number}: {reason}.\n  Delete this line; the next run computes it again."
                )
            rows[row.id] = row
        return rows

    def add(self, row: GroupRow) -> None:
        """Appends one finished refit.

        Raises:
            WorkError: its loss is not finite, or the disk is full; the file is as it was.
        """
        if not math.isfinite(row.loss):
            raise WorkError(
                f"The refit without group {row.id} ended with test loss {row.loss}, and {self.path} did not take it.\n"
                "  The refit diverged. Lower the learning rate, or remove smaller groups (refit.groups)."
            )
        jsonl.append(self.path, row.to_json())


def _row(content: dict[str, Any]) -> GroupRow | None:
    try:
        name, ids, loss = content["id"], [int(i) for i in content["ids"]], float(content["loss"])
        return GroupRow(str(name), ids, loss, float(content["grad_norm"]), float(content["seconds"]))
    except (KeyError, TypeError, ValueError):
        return None
