"""Sanitised text of samples: one line, no control or direction characters, escaped for Markdown and matplotlib."""

from __future__ import annotations

import string
import unicodedata

_TURNING = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_ESCAPED = {ord(mark): f"&#{ord(mark)};" for mark in string.punctuation}


def one_line(text: str, most: int) -> str:
    """Returns the text on one line of at most `most` characters, each run of white space replaced by a space.

    Control characters, direction marks and halves of surrogate pairs are removed, so that they can break no column,
    line or file.
    """
    spaced = (" " if mark.isspace() else mark for mark in text)
    kept = (mark for mark in spaced if mark not in _TURNING and unicodedata.category(mark) not in ("Cc", "Cs"))
    return short(" ".join("".join(kept).split()), most)


def short(text: str, most: int) -> str:
    """Returns the text, cut off with an ellipsis beyond `most` characters."""
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def markdown(text: str, most: int) -> str:
    """Returns the text on one line of Markdown, all ASCII punctuation replaced by HTML entities.

    Neither Markdown nor HTML then interprets any part of it, in a table or outside.
    """
    return one_line(text, most).translate(_ESCAPED)


def drawn(text: str, most: int) -> str:
    """Returns the text on one line for matplotlib, dollar signs escaped, which would otherwise enclose formulas."""
    return one_line(text, most).replace("$", r"\$")


def table(head: list[str], rows: list[list[str]]) -> str:
    """Returns a Markdown table; the cells must already be escaped (see `markdown`)."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
