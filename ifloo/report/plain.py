"""Text of samples made fit for one line of a table: no line breaks, nothing that turns the direction of the rest."""

from __future__ import annotations

import string
import unicodedata

_TURNING = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_ESCAPED = {ord(mark): f"&#{ord(mark)};" for mark in string.punctuation}


def one_line(text: str, most: int) -> str:
    """The text on one line of at most so many characters, every stretch of white space a space.

    Control characters, what turns the direction of writing and halves of surrogate pairs are left out: no tab, line or
    file can be broken by them.
    """
    spaced = (" " if mark.isspace() else mark for mark in text)
    kept = (mark for mark in spaced if mark not in _TURNING and unicodedata.category(mark) not in ("Cc", "Cs"))
    return short(" ".join("".join(kept).split()), most)


def short(text: str, most: int) -> str:
    """The text, cut off with an ellipsis beyond `most` characters."""
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def markdown(text: str, most: int) -> str:
    """The text on one line of Markdown that says just this: every mark of ASCII is an HTML entity.

    So neither Markdown nor HTML finds anything in it to act upon, in a table or outside.
    """
    return one_line(text, most).translate(_ESCAPED)


def drawn(text: str, most: int) -> str:
    """The text on one line of a picture, where what stands between two dollar signs would be read as a formula."""
    return one_line(text, most).replace("$", r"\$")


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table of Markdown; cells are as they shall stand there (see `markdown`)."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
