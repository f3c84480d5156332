"""Canvas on a matplotlib figure: images and text at positions in inches from the upper left corner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.transforms import Affine2D, Transform
from numpy.typing import NDArray

from ifloo.report.figures.style import FAINT, INK
from ifloo.report.figures.text_layout import POINTS, TextStyle

_ASCENT = 0.98  # height of a line's top above its baseline, in units of the font size


@dataclass(frozen=True)
class Box:
    """A rectangle on the page.

    Attributes:
        x: Distance from the left edge, inches.
        y: Distance from the top edge, inches.
        width: Width, inches.
        height: Height, inches.
    """

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, eq=False)
class Page:
    """Canvas on a figure of `width` and `height` inches; text is drawn literally, never parsed as mathematics."""

    figure: Figure
    width: float
    height: float

    @property
    def _inches(self) -> Transform:
        return Affine2D().scale(1, -1).translate(0, self.height) + self.figure.dpi_scale_trans

    def rectangle(
        self,
        box: Box,
        *,
        facecolor: str = "none",
        edgecolor: str | None = None,
        linewidth: float = 0,
        zorder: float = -1,
    ) -> None:
        """Draws a rectangle behind all images and text; the settings are those of matplotlib's patches."""
        shape = Rectangle((box.x, box.y), box.width, box.height, transform=self._inches, zorder=zorder)
        shape.set(facecolor=facecolor, edgecolor=edgecolor, linewidth=linewidth)
        self.figure.add_artist(shape)

    def lines(
        self, x: float, y: float, lines: Sequence[str], lettering: TextStyle, colour: str = INK, align: str = "left"
    ) -> float:
        """Draws lines of readable text, the first with its top at y, and returns the y coordinate of their end, inches.

        The caller makes sure that the lines fit (see `Lettering.lines`).
        """
        for number, line in enumerate(lines):
            self.figure.text(
                x,
                y + number * lettering.step + _ASCENT * lettering.size / POINTS,
                line,
                transform=self._inches,
                fontproperties=lettering.font,
                color=colour,
                ha=align,
                va="baseline",
                parse_math=False,
            )
        return y + len(lines) * lettering.step

    def picture(self, box: Box, picture: NDArray[np.uint8]) -> None:
        """Draws an image in the middle of a box, as large as fits."""
        height, width = picture.shape[:2]
        scale = min(box.width / width, box.height / height)
        wide, high = width * scale, height * scale
        left, top = box.x + (box.width - wide) / 2, box.y + (box.height - high) / 2
        place = (left / self.width, 1 - (top + high) / self.height, wide / self.width, high / self.height)
        axes = self.figure.add_axes(place)
        axes.imshow(picture, cmap="gray", vmin=0, vmax=255, aspect="auto")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.grid(False)
        for spine in axes.spines.values():
            spine.set(visible=True, color=FAINT, linewidth=0.6)
