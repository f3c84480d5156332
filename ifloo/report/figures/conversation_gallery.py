"""Figure of an image-text test row beside its most influential training rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ifloo.data.protocol import CaptionedSet, ConversationSet
from ifloo.report.figures.canvas import Page
from ifloo.report.figures.conversation_card import Card, GalleryRow
from ifloo.report.figures.style import HARMFUL, HELPFUL, INK, QUIET, styled
from ifloo.report.figures.text_layout import TextStyle

_PER_ROW = 4

# Inches.
_MARGIN, _GAP, _APART = 0.22, 0.16, 0.3
_HEAD = 0.34
_WIDTH, _PICTURE = 2.3, 1.55
_TEST_WIDTH, _TEST_PICTURE = 3.5, 2.7

_TITLE, _HEADING, _NOTE = TextStyle(12, bold=True), TextStyle(10, bold=True), TextStyle(8.5)


def pictures_of(data: CaptionedSet | ConversationSet, id_: int) -> Sequence[NDArray[np.uint8]]:
    """Returns the images of a sample of a `ConversationSet`, or of a set with at most one image per sample."""
    if isinstance(data, ConversationSet):
        return list(data.pictures(id_))
    picture = data.picture(id_)
    return [] if picture is None else [picture]


def row_of(data: ConversationSet, id_: int, score: float | None = None, answered: str = "") -> GalleryRow:
    """Returns a sample of a `ConversationSet` as a row of the gallery."""
    return GalleryRow(id_, data.pictures(id_), data.question(id_), data.answer(id_), score, answered)


def gallery(test: GalleryRow, helpful: Sequence[GalleryRow], harmful: Sequence[GalleryRow], *, title: str) -> Figure:
    """Draws the test row beside the most helpful and the most harmful training rows, in the order given.

    Args:
        test: Test row.
        helpful: Training rows of the most negative scores.
        harmful: Training rows of the most positive scores.
        title: Title of the figure.

    Returns:
        The figure.

    Raises:
        InputError: If an image is empty, or not uint8 with shape [height, width] or [height, width, 3].
    """
    test.check("test row")
    for row in (*helpful, *harmful):
        row.check("training row")
    test_card = Card(test, _TEST_WIDTH, _TEST_PICTURE, TextStyle(10), 9, INK)
    groups = [
        _Group(text, colour, [Card(row, _WIDTH, _PICTURE, TextStyle(8.5), 4, colour) for row in rows])
        for text, colour, rows in (
            ("most helpful: without them the test loss rises", HELPFUL, helpful),
            ("most harmful: without them the test loss falls", HARMFUL, harmful),
        )
        if rows
    ]
    width = 2 * _MARGIN + _TEST_WIDTH + max((_APART + one.width for one in groups), default=0.0)
    below = max(_HEAD + test_card.height, sum(one.height for one in groups) + _APART * (len(groups) - 1))
    height = 2 * _MARGIN + _HEAD + below + (_NOTE.step + _GAP if groups else 0)
    with styled(width, height) as figure:
        figure.set_layout_engine("none")
        page = Page(figure, width, height)
        page.lines(_MARGIN, _MARGIN, _TITLE.lines(title, width - 2 * _MARGIN, 1), _TITLE)
        top = _MARGIN + _HEAD
        page.lines(_MARGIN, top, ["test row"], _HEADING)
        test_card.draw(page, _MARGIN, top + _HEAD, test_card.height)
        for one in groups:
            top = one.draw(page, _MARGIN + _TEST_WIDTH + _APART, top) + _APART
        if groups:
            note = "score s[t, i], nats per unit weight"
            page.lines(width - _MARGIN, height - _MARGIN - _NOTE.step, [note], _NOTE, QUIET, align="right")
    return figure


@dataclass(frozen=True)
class _Group:
    """Cards under one heading, at most `_PER_ROW` in a line."""

    text: str
    colour: str
    cards: Sequence[Card]

    @property
    def width(self) -> float:
        columns = min(len(self.cards), _PER_ROW)
        return max(columns * (_WIDTH + _GAP) - _GAP, _HEADING.width(self.text))

    @property
    def height(self) -> float:
        return _HEAD + sum(max(card.height for card in line) + _GAP for line in self._lines()) - _GAP

    def draw(self, page: Page, x: float, y: float) -> float:
        """Draws the group and returns the y coordinate of its lower end, inches."""
        page.lines(x, y, [self.text], _HEADING, self.colour)
        y += _HEAD
        for line in self._lines():
            height = max(card.height for card in line)
            for place, card in enumerate(line):
                card.draw(page, x + place * (_WIDTH + _GAP), y, height)
            y += height + _GAP
        return y - _GAP

    def _lines(self) -> list[Sequence[Card]]:
        return [self.cards[at : at + _PER_ROW] for at in range(0, len(self.cards), _PER_ROW)]
