"""Figure of a test image beside its most influential training images."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from numpy.typing import NDArray

from ifloo.errors import InputError
from ifloo.report.figures.style import HARMFUL, HELPFUL, INK, QUIET, number, styled

_PER_ROW = 8
# Inches.
_HEAD = 0.4
_CELL_WIDTH, _CELL_HEIGHT = 1.15, 1.72
_TEST_WIDTH, _TEXT_WIDTH = 2.6, 4.4


@dataclass(frozen=True, eq=False)
class TrainingPicture:
    """A training image with its score.

    Attributes:
        id: Id of the training sample.
        picture: Image, uint8, `[h, w]` or `[h, w, 3]`.
        caption: Caption, such as the label.
        score: Score on the test loss, nats per unit weight.
    """

    id: int
    picture: NDArray[np.uint8]
    caption: str
    score: float


def digit_grid(
    test_picture: NDArray[np.uint8],
    test_caption: str,
    helpful: Sequence[TrainingPicture],
    harmful: Sequence[TrainingPicture],
    *,
    title: str,
) -> Figure:
    """Draws the test image beside the most helpful and the most harmful training images, in the order given.

    Args:
        test_picture: Test image, uint8, `[h, w]` or `[h, w, 3]`.
        test_caption: Caption of the test image.
        helpful: Training images of the most negative scores.
        harmful: Training images of the most positive scores.
        title: Title of the figure.

    Raises:
        InputError: If an image is neither grey ([height, width]) nor RGB ([height, width, 3]).
    """
    _check("The test image", test_picture)
    for one in (*helpful, *harmful):
        _check(f"Training image {one.id}", one.picture)
    groups = [
        (group, colour, text)
        for group, colour, text in (
            (helpful, HELPFUL, "most helpful: without them the test loss rises"),
            (harmful, HARMFUL, "most harmful: without them the test loss falls"),
        )
        if group
    ]
    columns = max((min(len(group), _PER_ROW) for group, _, _ in groups), default=1)
    heights = [_HEAD + _CELL_HEIGHT * -(-len(group) // _PER_ROW) for group, _, _ in groups]
    width = max(_CELL_WIDTH * columns, _TEXT_WIDTH)
    with styled(_TEST_WIDTH + width, 2 * _HEAD + max(sum(heights), 2.8)) as figure:
        figure.suptitle(title, x=0.012, ha="left", fontsize=12, weight="bold")
        left, right = np.asarray(figure.subfigures(1, 2, width_ratios=[_TEST_WIDTH, width]))
        axes = left.subplots()
        _show(axes, test_picture, INK)
        axes.set_title(test_caption, fontsize=10.5, weight="normal", loc="center")
        if groups:
            parts = np.ravel(np.asarray(right.subfigures(len(groups), 1, height_ratios=heights)))
            for part, (group, colour, text) in zip(parts, groups, strict=True):
                _fill(part, group, colour, text, columns)
        note = "below each label: score s[t, i], nats per unit weight"
        figure.supxlabel(note, x=0.988, ha="right", fontsize=8.5, color=QUIET)
    return figure


def _check(name: str, picture: NDArray[np.uint8]) -> None:
    if np.ndim(picture) != 2 and np.shape(picture)[2:] != (3,):
        raise InputError(
            f"{name} has shape {np.shape(picture)}; the grid shows images, [height, width] or [height, width, 3]."
        )


def _fill(part: SubFigure, group: Sequence[TrainingPicture], colour: str, text: str, columns: int) -> None:
    part.suptitle(text, x=0.01, ha="left", fontsize=10, color=colour, weight="bold")
    cells = part.subplots(-(-len(group) // _PER_ROW), columns, squeeze=False).ravel()
    for cell, one in zip(cells[: len(group)], group, strict=True):
        _show(cell, one.picture, colour)
        cell.set_title(f"{one.caption}\n{number(one.score, '+.3g')}", fontsize=9, weight="normal", loc="center", pad=4)
        cell.set_xlabel(f"id {one.id}", fontsize=8, color=QUIET, labelpad=3)
    for cell in cells[len(group) :]:
        cell.set_axis_off()


def _show(axes: Axes, picture: NDArray[np.uint8], colour: str) -> None:
    axes.imshow(picture, cmap="gray_r", vmin=0, vmax=255, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set(visible=True, color=colour, linewidth=1.4)
