"""Card of one image-text sample for a matplotlib figure: images, question, answer, id and score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ifloo.errors import InputError
from ifloo.report.figures.canvas import Box, Page
from ifloo.report.figures.style import FAINT, INK, QUIET, number
from ifloo.report.figures.text_layout import TextStyle

_PICTURES = 4  # images shown per sample; the number of further ones is written below

# Inches.
_PAD, _GAP, _STRIP = 0.13, 0.08, 0.05
_PAPER = "#F4F4F4"
_SMALL = TextStyle(7.5)


@dataclass(frozen=True, eq=False)
class GalleryRow:
    """One sample of an image-text data set.

    Attributes:
        id: Id of the sample.
        pictures: Images, uint8, each [height, width] or [height, width, 3]; empty for a sample of text only.
        question: Question to the model.
        answer: Correct answer.
        score: Score on the test loss, nats per unit weight; None for the test sample itself.
        answered: The model's own answer; empty if it was not generated.
    """

    id: int
    pictures: Sequence[NDArray[np.uint8]]
    question: str
    answer: str
    score: float | None = None
    answered: str = ""

    def check(self, name: str) -> None:
        """Checks that all images can be drawn.

        Args:
            name: Name of the row in error messages.

        Raises:
            InputError: If an image is empty, or not uint8 with shape [height, width] or [height, width, 3].
        """
        for place, picture in enumerate(self.pictures):
            shape, kind = np.shape(picture), np.asarray(picture).dtype
            if kind != np.uint8 or len(shape) not in (2, 3) or shape[2:] not in ((), (3,)) or 0 in shape:
                raise InputError(
                    f"Picture {place} of {name} {self.id} is {kind} with shape {shape}; a card shows uint8 images, "
                    "[height, width] or [height, width, 3], that are not empty."
                )


@dataclass(frozen=True, eq=False)
class Card:
    """Drawing of one sample.

    Attributes:
        row: The sample.
        width: Width of the card, inches.
        picture: Height reserved for images, inches.
        text: Text style of question and answer.
        most: Largest number of lines of the question, and of the answer.
        colour: Colour of the card's edge and of the score.
    """

    row: GalleryRow
    width: float
    picture: float
    text: TextStyle
    most: int
    colour: str

    @property
    def height(self) -> float:
        """Height that the content needs, inches."""
        below = sum(_GAP + _SMALL.step + len(lines) * self.text.step for _, lines in self._below())
        return _PAD + self.picture + below + _GAP + _SMALL.step + _PAD

    def draw(self, page: Page, x: float, y: float, height: float) -> None:
        """Draws the card with its upper left corner at (x, y), inches; `height` may exceed what the content needs."""
        page.rectangle(Box(x, y, self.width, height), facecolor="white", edgecolor=FAINT, linewidth=0.8)
        page.rectangle(Box(x, y, self.width, _STRIP), facecolor=self.colour)
        left = x + _PAD
        top = Box(left, y + _PAD, self._inner, self.picture)
        page.rectangle(top, facecolor=_PAPER)
        self._draw_pictures(page, top) if self.row.pictures else self._draw_question(page, top)
        at = top.y + top.height
        for label, lines in self._below():
            at = self._draw_block(page, left, at + _GAP, label, lines)
        foot = y + height - _PAD - _SMALL.step
        bold = TextStyle(self.text.size, bold=True)
        score = "" if self.row.score is None else number(self.row.score, "+.3g")
        page.lines(left, foot, _SMALL.lines(self._foot(), self._inner - bold.width(score) - _GAP, 1), _SMALL, QUIET)
        if score:
            page.lines(x + self.width - _PAD, foot - 0.02, [score], bold, self.colour, align="right")

    @property
    def _inner(self) -> float:
        return self.width - 2 * _PAD

    def _foot(self) -> str:
        hidden = len(self.row.pictures) - _PICTURES
        return f"id {self.row.id}" + (f" · {hidden} more" if hidden > 0 else "")

    def _below(self) -> list[tuple[str, list[str]]]:
        """Lists label and lines of each text below the images, or below the question if the sample has no image."""
        texts = [("question", self.row.question if self.row.pictures else "")]
        texts += [("answer", self.row.answer), ("the model answered", self.row.answered)]
        blocks = [(label, self.text.lines(text, self._inner, self.most)) for label, text in texts]
        return [(label, lines) for label, lines in blocks if lines]

    def _draw_block(self, page: Page, x: float, y: float, label: str, lines: Sequence[str]) -> float:
        page.lines(x, y, [label], _SMALL, QUIET)
        return page.lines(x, y + _SMALL.step, lines, self.text, INK)

    def _draw_question(self, page: Page, box: Box) -> None:
        """Draws the question in the box of the images, with as many lines as fit."""
        room = int((box.height - 2 * _PAD - _SMALL.step) / self.text.step)
        lines = self.text.lines(self.row.question, box.width - 2 * _PAD, max(room, 1))
        self._draw_block(page, box.x + _PAD, box.y + _PAD, "question, no image", lines)

    def _draw_pictures(self, page: Page, box: Box) -> None:
        shown = [np.asarray(picture) for picture in self.row.pictures[:_PICTURES]]
        choices = [_cells(box, len(shown), columns) for columns in range(1, len(shown) + 1)]
        best = max(choices, key=lambda cells: sum(_area(*pair) for pair in zip(cells, shown, strict=True)))
        for cell, picture in zip(best, shown, strict=True):
            page.picture(cell, picture)


def _cells(box: Box, count: int, columns: int) -> list[Box]:
    width = (box.width + _GAP) / columns
    height = (box.height + _GAP) / math.ceil(count / columns)
    places = [divmod(place, columns) for place in range(count)]
    return [Box(box.x + x * width, box.y + y * height, width - _GAP, height - _GAP) for y, x in places]


def _area(box: Box, picture: NDArray[np.uint8]) -> float:
    """Computes the area of an image scaled to fit a box, square inches."""
    height, width = picture.shape[:2]
    area: float = height * width * min(box.width / width, box.height / height) ** 2
    return area
