"""Figure of label errors: the share of known wrong labels found while inspecting the data in the order of a ranking."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from ifloo.errors import InputError
from ifloo.report.figures.style import CONTROL, FAINT, FIT, HARMFUL, HELPFUL, INK, QUIET, styled
from ifloo.verdict import LabelErrors
from ifloo.verdict.label_errors import NAMES

_LOOKS = {
    "self_influence": (HELPFUL, "solid"),
    "tracin": (CONTROL, "solid"),
    "last_layer": (FIT, (0, (5, 2))),
    "left_out_loss": (HARMFUL, (0, (3, 1.5))),
    "loss": (INK, "solid"),
}


def label_errors(found: LabelErrors) -> Figure:
    """Draws the share of wrong labels found against the share of the data inspected, one line per ranking.

    The left panel shows the beginning, up to twice the tenth in which the verdict counts; the right panel shows all
    data. The dashed diagonal is the expectation of a random order, the edge of the grey area the best possible order.

    Args:
        found: Rankings and the labels known to be wrong.

    Returns:
        The figure.

    Raises:
        InputError: If `found` has no ranking, or a ranking has no wrong label.
    """
    if not found.ranked or not all(wrong.any() for wrong in found.ranked.values()):
        raise InputError(
            f"The picture of label errors needs rankings with wrong labels in them; got {len(found.ranked)} rankings "
            f"and {found.corrupted} wrong labels."
        )
    n = len(next(iter(found.ranked.values())))
    with styled(9.6, 5.4) as figure:
        near, whole = figure.subplots(1, 2, width_ratios=[3, 2])
        for axes, reach in ((near, min(1.0, 2 * found.rows_checked / n)), (whole, 1.0)):
            _lines(axes, found, reach)
        near.set_ylabel("wrong labels found")
        near.axvline(found.rows_checked / n, color=QUIET, linewidth=0.8)
        near.set_title(f"{found.corrupted:,} of {n:,} labels are wrong: how fast are they found?")
        near.set_xlabel("training data inspected, in the order of the ranking")
        whole.set_xlabel("all training data")
        handles, texts = near.get_legend_handles_labels()
        note = f"found in the first {100 * found.rows_checked / n:.3g}% of the data"
        figure.legend(handles, texts, loc="outside lower center", ncols=2, title=note, title_fontsize=9.5)
    return figure


def _lines(axes: Axes, found: LabelErrors, reach: float) -> None:
    for name, wrong in found.ranked.items():
        colour, dashes = _LOOKS[name]
        inspected, share = _curve(wrong)
        text = f"{NAMES[name]}: {found.found[name]:,} of {found.corrupted:,}"
        axes.plot(inspected, share, color=colour, linestyle=dashes, linewidth=1.8, label=text)
    best = next(iter(found.ranked.values())).mean()
    axes.fill_between([0, best, 1], [0, 1, 1], 1, color=FAINT, zorder=0.5, linewidth=0)
    chance = f"by chance: {found.chance:.3g} of {found.corrupted:,}"
    axes.plot([0, 1], [0, 1], color=QUIET, linestyle=(0, (4, 3)), linewidth=1.0, label=chance)
    axes.set_xlim(0, reach)
    axes.set_ylim(0, 1.02)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))


def _curve(wrong: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns the shares of data inspected and of wrong labels found, from none to all."""
    inspected = np.arange(len(wrong) + 1) / len(wrong)
    return inspected, np.concatenate([[0.0], np.cumsum(wrong) / wrong.sum()])
