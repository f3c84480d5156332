"""Random access to the lines of a jsonl file by byte offset."""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ifloo.errors import InputError


class Line(NamedTuple):
    """A line that is not blank.

    Attributes:
        position: Position of the line in the file, from 0, blank lines counted.
        offset: Offset of the line's first byte.
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
    """

    path: Path
    size: int
    changed: int

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
                file.read(1)
        except OSError as error:
            raise InputError(
                f"{setting}: expected a jsonl file, found: {error.strerror}: {path}.\n  Give the path of one."
            ) from error
        return cls(path, state.st_size, state.st_mtime_ns)

    def lines(self) -> Iterator[Line]:
        """Yields the lines that are not blank, in order, without byte order mark and line ends (also Windows')."""
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
            for offset in offsets:
                file.seek(offset)
                yield file.readline()
