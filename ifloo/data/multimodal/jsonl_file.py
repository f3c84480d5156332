"""A file of lines read one at a time: where each begins, so that any of them can be read again without the others."""

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
        position: in the file, from 0, blank lines counted.
        offset: of its first byte.
        content: without the line end.
    """

    position: int
    offset: int
    content: bytes


@dataclass(frozen=True)
class JsonlFile:
    """A file as it was when first seen; every later look makes sure that it still is.

    Attributes:
        path: of the file.
        size: bytes.
        changed: time of the last change, in nanoseconds.
    """

    path: Path
    size: int
    changed: int

    @classmethod
    def at(cls, path: Path, setting: str) -> JsonlFile:
        """The file there.

        Raises:
            InputError: it cannot be read; the text names the setting it came from.
        """
        try:
            with path.open("rb") as file:
                found = os.fstat(file.fileno())
                file.read(1)
        except OSError as error:
            raise InputError(
                f"{setting}: expected a jsonl file, found: {error.strerror}: {path}.\n  Give the path of one."
            ) from error
        return cls(path, found.st_size, found.st_mtime_ns)

    def lines(self) -> Iterator[Line]:
        """All lines that are not blank, in order; a byte order mark is passed over, Windows line ends are fine."""
        with self.path.open("rb") as file:
            offset = 0
            for position, raw in enumerate(file):
                mark = len(codecs.BOM_UTF8) if position == 0 and raw.startswith(codecs.BOM_UTF8) else 0
                if content := raw[mark:].strip(b" \t\r\n"):
                    yield Line(position, offset + mark, content)
                offset += len(raw)

    def at_offsets(self, offsets: Sequence[int]) -> Iterator[bytes]:
        """The lines that begin there, in this order.

        Raises:
            InputError: the file has changed.
        """
        with self.path.open("rb") as file:
            now = os.fstat(file.fileno())
            if (now.st_size, now.st_mtime_ns) != (self.size, self.changed):
                raise InputError(f"{self.path} has changed while it was in use.\n  Start again, with the file at rest.")
            for offset in offsets:
                file.seek(offset)
                yield file.readline()
