"""Text in columns of a terminal, in any script: a Chinese character takes two."""

from __future__ import annotations

import unicodedata

ELLIPSIS = "…"


def width(text: str) -> int:
    """Columns that a text takes."""
    return sum(_width(character) for character in text)


def padded(text: str, columns: int) -> str:
    """The text with spaces behind it."""
    return text + " " * (columns - width(text))


def cut(text: str, columns: int) -> str:
    """The text, or where it is wider its two ends: what stands last, such as an answer, is as good as the beginning."""
    if width(text) <= columns:
        return text
    room = columns - 1
    head = _fitting(text, room - room // 2)
    tail = _fitting(text[::-1], room - width(head))[::-1]
    return f"{head.rstrip()}{ELLIPSIS}{tail.lstrip()}"


def _fitting(text: str, columns: int) -> str:
    """As much of its beginning as there is room for."""
    taken = 0
    for at, character in enumerate(text):
        taken += _width(character)
        if taken > columns:
            return text[:at]
    return text


def _width(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
