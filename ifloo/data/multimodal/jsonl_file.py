"""Random access to the rows of a jsonl file by byte offset, or of a file that is one JSON array, kept in memory."""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ifloo.errors import InputError

ARRAY_BYTES = 512 << 20  # largest file that is read as one JSON array


class Line(NamedTuple):
    """A line that is not blank, or an element of an array.

    Attributes:
        position: Position in the file, from 0, blank lines counted.
        offset: Offset of the line's first byte; the position, for an element of an array.
        content: Bytes of the line without the line end.
    """

    position: int
    offset: int
    content: bytes


@dataclass(frozen=True)
class JsonlFile:
    """A file and its state when it was first opened; reading by offset checks that the state is unchanged.

    Attributes:
        path: Path of the file.
        size: Size of the file, bytes.
        changed: Time of the last change, nanoseconds.
        array: Elements of a file that is one JSON array; None for a file with one row a line.
    """

    path: Path
    size: int
    changed: int
    array: tuple[bytes, ...] | None = None

    @classmethod
    def at(cls, path: Path, setting: str) -> JsonlFile:
        """Opens a file once and records its state.

        Args:
            path: Path of the file.
            setting: Name of the setting that holds the path, for error messages.

        Raises:
            InputError: If the file cannot be read.
        """
        try:
            with path.open("rb") as file:
                state = os.fstat(file.fileno())
                array = _elements(file, path, state.st_size)
        except OSError as error:
            raise InputError(
                f"{setting}: expected a jsonl file, found: {error.strerror}: {path}.\n  Give the path of one."
            ) from error
        return cls(path, state.st_size, state.st_mtime_ns, array)

    @property
    def unit(self) -> str:
        """Name of the place of a row: line, or element of the array."""
        return "line" if self.array is None else "element"

    def lines(self) -> Iterator[Line]:
        """Yields the lines that are not blank, in order, without byte order mark and line ends (also Windows')."""
        if self.array is not None:
            yield from (Line(k, k, content) for k, content in enumerate(self.array))
            return
        with self.path.open("rb") as file:
            offset = 0
            for position, raw in enumerate(file):
                mark = len(codecs.BOM_UTF8) if position == 0 and raw.startswith(codecs.BOM_UTF8) else 0
                if content := raw[mark:].strip(b" \t\r\n"):
                    yield Line(position, offset + mark, content)
                offset += len(raw)

    def at_offsets(self, offsets: Sequence[int]) -> Iterator[bytes]:
        """Yields the lines that begin at these offsets, in this order.

        Raises:
            InputError: If the file has changed.
        """
        with self.path.open("rb") as file:
            now = os.fstat(file.fileno())
            if (now.st_size, now.st_mtime_ns) != (self.size, self.changed):
                raise InputError(f"{self.path} has changed while it was in use.\n  Start again and leave it unchanged.")
            if self.array is not None:
                yield from (self.array[k] for k in offsets)
                return
            for offset in offsets:
                file.seek(offset)
                yield file.readline()


def _elements(file: BinaryIO, path: Path, size: int) -> tuple[bytes, ...] | None:
    """Returns the elements of a file that is one JSON array; None for any other file.

    Raises:
        InputError: If the array is broken, or too large to be kept in memory.
    """
    start = file.read(1 << 16).removeprefix(codecs.BOM_UTF8).lstrip()
    if not start.startswith(b"[") or start[1:].lstrip()[:1] not in (b"{", b""):  # also a list in the first of the lines
        return None
    advice = f"  Write one object a line: jq -c '.[]' {path.name} > {path.stem}.jsonl."
    if size > ARRAY_BYTES:
        raise InputError(
            f"{path} is one JSON array of {size / 2**30:.1f} GiB, which would have to be read whole.\n{advice}"
        )
    file.seek(0)
    try:
        rows = json.loads(file.read().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        broken = f"{path} begins as a JSON array and is none: {error}"
        raise InputError(f"{broken}.\n  Correct it.{advice[1:]}") from error
    return tuple(json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass") for row in rows)
