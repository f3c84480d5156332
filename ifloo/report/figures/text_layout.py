"""Text of any language in matplotlib figures: available characters, their widths, and line breaks."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from matplotlib import font_manager
from matplotlib.font_manager import FontProperties
from matplotlib.ft2font import FT2Font

LATIN = "DejaVu Sans"  # shipped with matplotlib
HAN = "Ifloo Han"  # shipped beside this file: Chinese, kana, and their punctuation
HAN_FILE = Path(__file__).parent / "fonts" / "han.ttf"
POINTS = 72  # points per inch
ELLIPSIS = "…"

_LEADING = 1.42  # distance of two lines, in units of the font size
_KERNING = 1.02  # words may be this much wider than the sum of their letters
_UNITS_SIZE = 100  # font size at which characters are measured, points
_SKIN_TONES = range(0x1F3FB, 0x1F400)
_VARIANTS = range(0xFE00, 0xFE10)

# A line may break between any two characters of Chinese or Japanese, but not before a closing mark, nor after an
# opening one.
_WIDE = "\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff"
_OPENING = "“‘「『《〈（【〔［｛"
_CLOSING = "”’」』》〉）】〕］｝，。、；：？！…％,.;:?!%)"
_UNIT = re.compile(rf"[{_OPENING}]*(?:[^\s{_WIDE}{_OPENING}]+|[{_WIDE}])[{_CLOSING}]*\s*|\S\s*")


@dataclass(frozen=True)
class TextStyle:
    """Style of text in a figure.

    Attributes:
        size: Font size, points.
        bold: Whether the text is bold.
    """

    size: float
    bold: bool = False

    @property
    def step(self) -> float:
        """Distance from one line to the next, inches."""
        return _LEADING * self.size / POINTS

    @property
    def font(self) -> FontProperties:
        """Font properties for matplotlib."""
        _register()
        return FontProperties(family=[LATIN, HAN], size=self.size, weight=_weight(self.bold))

    def readable(self, text: str) -> str:
        """Returns the text on one line; a character that no font has becomes its name or code point in brackets."""
        visible = (c for c in " ".join(unicodedata.normalize("NFC", text).split()) if not _is_unseen(c))
        return "".join(c if _advance(c, self.bold) is not None else _named(c) for c in visible)

    def width(self, text: str) -> float:
        """Returns an upper bound of the width of readable text on one line, inches."""
        return _KERNING * sum(_advance(c, self.bold) or 0.0 for c in text) * self.size / POINTS

    def lines(self, text: str, width: float, most: int) -> list[str]:
        """Breaks a text into readable lines up to a width, cut off with an ellipsis after `most` lines.

        Args:
            text: Text to break.
            width: Largest width of a line, inches.
            most: Largest number of lines.
        """
        lines: list[str] = []
        line = ""
        for unit in self._units(self.readable(text), width):
            if len(lines) > most:
                break
            if line and self.width((line + unit).rstrip()) > width:
                lines.append(line.rstrip())
                line = ""
            line += unit
        if line.strip():
            lines.append(line.rstrip())
        if len(lines) > most:
            lines = [*lines[: most - 1], self._cut(lines[most - 1], width)]
        return lines

    def _units(self, text: str, width: float) -> Iterator[str]:
        """Yields unbreakable parts: words and single Chinese characters; words wider than a line in parts that fit."""
        for unit in _UNIT.finditer(text):
            part = ""
            for c in unit.group():
                if part and self.width((part + c).rstrip()) > width:
                    yield part
                    part = ""
                part += c
            yield part

    def _cut(self, line: str, width: float) -> str:
        while line and self.width(line + ELLIPSIS) > width:
            line = line[:-1].rstrip()
        return line + ELLIPSIS


def _weight(bold: bool) -> str:
    return "bold" if bold else "normal"


def _is_unseen(c: str) -> bool:
    """Returns whether a character has no glyph: control, direction and variant characters, unknown combining marks."""
    lost_mark = unicodedata.combining(c) > 0 and _advance(c, False) is None
    return lost_mark or unicodedata.category(c) in ("Cc", "Cf") or ord(c) in _VARIANTS or ord(c) in _SKIN_TONES


def _named(c: str) -> str:
    name = unicodedata.name(c, "")
    number = f"U+{ord(c):04X}"
    return f"[{number}]" if not name or name.endswith(number[2:]) else f"[{name.lower()}]"


@lru_cache(maxsize=1)
def _register() -> None:
    """Registers the Han font with matplotlib, also for bold text, without changing the user's font settings."""
    known = font_manager.fontManager
    known.addfont(HAN_FILE)
    known.ttflist.append(replace(known.ttflist[-1], weight=700))


@lru_cache(maxsize=2)
def _fonts(bold: bool) -> list[FT2Font]:
    _register()
    paths = [font_manager.findfont(FontProperties(family=family, weight=_weight(bold))) for family in (LATIN, HAN)]
    fonts = [FT2Font(path) for path in paths]
    for font in fonts:
        font.set_size(_UNITS_SIZE, POINTS)
    return fonts


@lru_cache(maxsize=20_000)
def _advance(c: str, bold: bool) -> float | None:
    """Returns the width of a character in units of the font size, from the first font that has it; None if none has."""
    for font in _fonts(bold):
        if font.get_char_index(ord(c)):
            return font.load_char(ord(c)).linearHoriAdvance / 0x10000 / _UNITS_SIZE
    return None
