"""Append-only files of JSON rows: one line per row, flushed to disk before the next row is computed."""

import errno
import json
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from ifloo.errors import InputError, WorkError
from ifloo.store.atomic import JSON, encode_json, not_written, sync_folder

log = logging.getLogger(__name__)


def append(path: Path | str, row: Mapping[str, JSON]) -> None:
    """Appends one row in one write and flushes it to disk; cuts off a torn line before it.

    Raises:
        WorkError: If the row holds NaN or infinity, or the disk is full; the file is then unchanged.
    """
    extend(path, [row])


def extend(path: Path | str, rows: Sequence[Mapping[str, JSON]]) -> None:
    """Appends rows, one line each, in one write and flushes them to disk; after an error none of them is in the file.

    A process killed during the write may leave the first rows and a torn line.

    Raises:
        WorkError: If a row holds NaN or infinity, or the disk is full; the file is then unchanged.
    """
    path = Path(path)
    lines = b"".join(encode_json(row, path) + b"\n" for row in rows)
    try:
        _append_lines(path, lines)
    except OSError as error:
        kept = "The row was" if len(rows) == 1 else f"{len(rows)} rows were"
        raise WorkError(not_written(path, error, f"{kept} not added; the earlier rows are unchanged.")) from error


def read(path: Path | str) -> list[dict[str, Any]]:
    """Reads all complete rows; a missing file has none. A torn last line is ignored with a warning.

    The file is not changed. A line before the last that is not a JSON object raises an InputError.
    """
    rows, whole, size = _parse(Path(path))
    if whole < size:
        log.warning("%s: left out its last line (%d bytes), which a killed run left unfinished.", path, size - whole)
    return rows


def repair(path: Path | str) -> bool:
    """Cuts off a torn last line (without a newline, or not a JSON object) and returns whether there was one.

    A line before the last that is not a JSON object raises an InputError.

    Raises:
        WorkError: If the file cannot be changed.
    """
    path = Path(path)
    _, whole, size = _parse(path)
    if whole == size:
        return False
    try:
        with open(path, "r+b") as file:
            file.truncate(whole)
            os.fsync(file.fileno())
    except OSError as error:
        raise WorkError(not_written(path, error, "Its whole rows are unchanged.")) from error
    log.warning("%s: cut off its last line (%d bytes), which a killed run left unfinished.", path, size - whole)
    return True


def _append_lines(path: Path, lines: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not _ends_with_newline(path):
        repair(path)  # else the new row would continue the torn line, and both would be lost
    new = not path.exists()
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        try:
            if os.write(descriptor, lines) != len(lines):  # a full disk accepts the first part of a line
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(descriptor)
        except OSError:
            with suppress(OSError):
                os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)
    if new:
        sync_folder(path.parent)


def _ends_with_newline(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            if file.seek(0, os.SEEK_END) == 0:
                return True
            file.seek(-1, os.SEEK_END)
            return file.read() == b"\n"
    except FileNotFoundError:
        return True


def _parse(path: Path) -> tuple[list[dict[str, Any]], int, int]:
    """Returns the rows, the number of bytes they take, and the size of the file, which is larger if the end is torn.

    Raises:
        InputError: If a line before the last is not a JSON object, or the file cannot be read.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return [], 0, 0
    except OSError as error:
        raise InputError(f"Could not read {path}: {error.strerror}.\n  Give a readable file.") from error
    rows: list[dict[str, Any]] = []
    whole = 0
    *lines, tail = content.split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(_row(line))
        except ValueError as error:
            if number == len(lines) and not tail:
                break
            raise InputError(
                f"{path}, line {number}: not a JSON object ({error}).\n"
                "  Only the last line may be unfinished (a killed run leaves one). Delete this line and run again."
            ) from error
        whole += len(line) + 1
    return rows, whole, len(content)


def _row(line: bytes) -> dict[str, Any]:
    row = json.loads(line.decode("utf-8"), parse_constant=_refuse_constant)
    if not isinstance(row, dict):
        raise ValueError(f"it is a {type(row).__name__}")
    return row


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not valid JSON")
