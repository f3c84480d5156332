"""Test losses after refits: a JSONL file with one row per removed sample, in the order in which refits finished."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ifloo.errors import InputError, WorkError
from ifloo.store import jsonl
from ifloo.store.atomic import JSON

NULL_ID = -1
"""Id of a refit with nothing removed."""

FLAG_RATIO = 0.05
"""A refit is flagged when its error exceeds this share of the change in loss that it measures."""

_OPTIONAL = ("grad_norm", "seconds", "delta_error")


@dataclass(frozen=True)
class LossRow:
    """One refit: the test loss after the removal of a sample, and the accuracy of the refit.

    A file from another program may hold only id and loss; the optional fields are then None.

    Attributes:
        id: Id of the removed sample; `NULL_ID` if nothing was removed.
        loss: Test loss, nats.
        grad_norm: ‖∇J‖ at the end of the refit.
        seconds: Duration of the refit, seconds.
        delta_error: Bound on the error of the change in loss, nats.
        extra: Further keys of the row.
    """

    id: int
    loss: float
    grad_norm: float | None = None
    seconds: float | None = None
    delta_error: float | None = None
    extra: Mapping[str, JSON] = field(default_factory=dict)

    def to_json(self) -> dict[str, JSON]:
        """Returns the row of the file."""
        known = {name: getattr(self, name) for name in _OPTIONAL if getattr(self, name) is not None}
        return {"id": self.id, "loss": self.loss, **known, **self.extra}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "LossRow":
        """Reads a row of the file.

        Raises:
            ValueError: If `id` is not a whole number or another field is not a number; the message names the field.
        """
        if not _is_whole(row.get("id")):
            raise ValueError(f"id is {row.get('id')!r}, not a whole number")
        if not _is_number(row.get("loss")):
            raise ValueError(f"loss is {row.get('loss')!r}, not a number")
        for name in _OPTIONAL:
            if row.get(name) is not None and not _is_number(row[name]):
                raise ValueError(f"{name} is {row[name]!r}, not a number")
        numbers = {name: float(row[name]) for name in _OPTIONAL if row.get(name) is not None}
        extra = {key: value for key, value in row.items() if key not in ("id", "loss", *_OPTIONAL)}
        return cls(int(row["id"]), float(row["loss"]), **numbers, extra=extra)


@dataclass(frozen=True)
class LossFile:
    """File of refits, each identified by its removed id, or of null refits (id -1), each identified by its `draw`.

    Attributes:
        path: Path of the file.
        key: Name of the field that identifies a row.
    """

    path: Path
    key: Literal["id", "draw"] = "id"

    def done(self) -> dict[int, LossRow]:
        """Reads the finished refits by id (or draw), in the order of the file, after cutting off a torn last line.

        Raises the same errors as `rows`.
        """
        jsonl.repair(self.path)
        return self.rows()

    def rows(self) -> dict[int, LossRow]:
        """Reads the finished refits by id (or draw) without changing the file, to which another run may be appending.

        Raises:
            InputError: If a line is not a refit, or an id (or draw) occurs twice.
        """
        rows: dict[int, LossRow] = {}
        lines: dict[int, int] = {}
        for number, content in enumerate(jsonl.read(self.path), start=1):
            try:
                row = LossRow.from_json(content)
                key = self._key(row)
            except ValueError as error:
                raise InputError(
                    f"{self.path}, line {number}: not a refit: {error}.\n"
                    "  Delete this line; the next run computes that refit again."
                ) from error
            if key in rows:
                raise InputError(
                    f"{self.path}, line {number}: {self.key} {key} is on line {lines[key]} already.\n"
                    "  Two results for one refit cannot both hold. Delete both lines; the next run computes it again."
                )
            rows[key], lines[key] = row, number
        return rows

    def add(self, row: LossRow) -> None:
        """Appends one finished refit and flushes it to disk.

        Raises:
            ValueError: If a row for a file of null refits has no `draw`, or `extra` holds the name of a field.
            WorkError: If a number is not finite, or the disk is full; the file is then unchanged.
        """
        self._key(row)
        if clash := sorted(set(row.extra) & {"id", "loss", *_OPTIONAL}):
            raise ValueError(f"extra holds {', '.join(clash)}, which is a field of the row")
        if not math.isfinite(row.loss):
            raise WorkError(
                f"The refit with id {row.id} ended with test loss {row.loss} and was not added to {self.path}.\n"
                "  The refit diverged. Look at its log, lower the learning rate or raise the penalty, and run again: "
                "finished refits are kept."
            )
        jsonl.append(self.path, row.to_json())

    def _key(self, row: LossRow) -> int:
        if self.key == "id":
            return row.id
        draw = row.extra.get("draw")
        if row.id != NULL_ID or not (isinstance(draw, int) and _is_whole(draw)):
            raise ValueError(f"a null refit has id {NULL_ID} and a whole number `draw`, not id {row.id} and {draw!r}")
        return draw


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
