"""One sample of an image-text data set on a card: its images, what is asked, what is answered, its id and score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ifloo.errors import InputError
from ifloo.report.lettering import Lettering
from ifloo.report.page import Box, Page
from ifloo.report.style import FAINT, INK, QUIET, number

_PICTURES = 4  # of one sample; more are counted, not shown

# Inches.
_PAD, _GAP, _STRIP = 0.13, 0.08, 0.05
_PAPER = "#F4F4F4"
_SMALL = Lettering(7.5)


@dataclass(frozen=True, eq=False)
class GalleryRow:
    """One sample of an image-text data set.

    Attributes:
        id: of the sample.
        pictures: uint8, each [height, width] or [height, width, 3]; none for a sample of text alone.
        question: what the model is asked.
        answer: what it should answer.
        score: on the test loss, nats per unit weight; None for the test itself.
        answered: what the model did answer; empty where nobody asked it.
    """

    id: int
    pictures: Sequence[NDArray[np.uint8]]
    question: str
    answer: str
    score: float | None = None
    answered: str = ""

    def check(self, name: str) -> None:
        """Pass where all pictures can be drawn.

        Raises:
            InputError: one is not a uint8 image, [height, width] or [height, width, 3], or empty.
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
    """A sample as it will be drawn.

    Attributes:
        row: the sample.
        width: of the card, inches.
        picture: height kept for images, inches.
        text: size of question and answer.
        most: lines of each of them at most.
        colour: of its edge and its score.
    """

    row: GalleryRow
    width: float
    picture: float
    text: Lettering
    most: int
    colour: str

    @property
    def height(self) -> float:
        """What its content needs, inches."""
        below = sum(_GAP + _SMALL.step + len(lines) * self.text.step for _, lines in self._below())
        return _PAD + self.picture + below + _GAP + _SMALL.step + _PAD

    def draw(self, page: Page, x: float, y: float, height: float) -> None:
        """Draw it with its upper left corner at (x, y), inches; its height may be more than it needs."""
        page.rectangle(Box(x, y, self.width, height), facecolor="white", edgecolor=FAINT, linewidth=0.8)
        page.rectangle(Box(x, y, self.width, _STRIP), facecolor=self.colour)
        left = x + _PAD
        top = Box(left, y + _PAD, self._inner, self.picture)
        page.rectangle(top, facecolor=_PAPER)
        self._draw_pictures(page, top) if self.row.pictures else self._draw_paper(page, top)
        at = top.y + top.height
        for label, lines in self._below():
            at = self._draw_block(page, left, at + _GAP, label, lines)
        foot = y + height - _PAD - _SMALL.step
        bold = Lettering(self.text.size, bold=True)
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
        """What stands below the images, or below the paper with the question where there are none."""
        texts = [("question", self.row.question if self.row.pictures else "")]
        texts += [("answer", self.row.answer), ("the model answered", self.row.answered)]
        blocks = [(label, self.text.lines(text, self._inner, self.most)) for label, text in texts]
        return [(label, lines) for label, lines in blocks if lines]

    def _draw_block(self, page: Page, x: float, y: float, label: str, lines: Sequence[str]) -> float:
        page.lines(x, y, [label], _SMALL, QUIET)
        return page.lines(x, y + _SMALL.step, lines, self.text, INK)

    def _draw_paper(self, page: Page, box: Box) -> None:
        """Draw the question where the images of others are, with as many lines as there is room for."""
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
    """How large a picture comes out in a box."""
    height, width = picture.shape[:2]
    area: float = height * width * min(box.width / width, box.height / height) ** 2
    return area
