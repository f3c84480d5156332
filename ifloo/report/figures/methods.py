"""Figure that compares several methods on the same refits: predicted against actual changes, one panel per method."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import ArrayLike

from ifloo.agreement import Agreement, Array, Interval
from ifloo.errors import InputError
from ifloo.report.figures.influence import KINDS
from ifloo.report.figures.style import FAINT, FIT, INK, QUIET, number, styled
from ifloo.report.figures.text_layout import TextStyle
from ifloo.verdict import reason_for_none

_COLUMNS = 4
_PANEL = 2.75  # inches
_NAME = TextStyle(10.5, bold=True)
_SAME_UNITS = 3.0  # a method whose predictions are up to this many times too large or small is drawn on equal axes


def methods_comparison(
    predicted: Mapping[str, ArrayLike],
    actual: ArrayLike,
    kinds: Sequence[str],
    agreements: Mapping[str, Agreement | None],
    *,
    title: str,
    noise_floor: float | None = None,
) -> Figure:
    """Draws predicted against actual changes of one test loss, one panel per method, in the order of `predicted`.

    The vertical axis is the same in all panels. If a method predicts changes of about the actual size, its horizontal
    axis is the same too and the line y = x is the diagonal; other methods have their own horizontal axis, on which the
    line y = x shows by how much their units differ.

    Args:
        predicted: Predicted changes by method, [n] each, nats; NaN where a method has no prediction for a removal.
        actual: Actual changes, [n], nats, from refits.
        kinds: Reason of each removal, [n]: keys of `influence.KINDS`.
        agreements: Statistics of all n removals by method; None if they are undefined.
        title: Title of the figure.
        noise_floor: Largest change covered by the grey band, nats; None draws no band.

    Raises:
        InputError: If `predicted` is empty, or the lengths differ.
    """
    clouds, y = _checked(predicted, actual, len(kinds))
    columns = min(len(clouds), _COLUMNS)
    rows = math.ceil(len(clouds) / columns)
    heights = [rows * (_PANEL + 0.6) + 0.85, 0.35 if columns > 2 else 0.6]
    with styled(max(columns, 2) * _PANEL + 0.4, sum(heights)) as figure:
        above, below = np.asarray(figure.subfigures(2, 1, height_ratios=heights))
        axes = above.subplots(rows, columns, squeeze=False, sharey=True).ravel()
        reach = 1.08 * float(np.abs(y).max()) or 1.0
        for panel, (name, x) in zip(axes, clouds.items(), strict=False):
            if noise_floor is not None:
                panel.axhspan(-noise_floor, noise_floor, color=FAINT, zorder=0.5, label="noise floor")
            _panel(panel, x, y, np.asarray(kinds), agreements.get(name), reach)
            panel.set_title("".join(_NAME.lines(name, _PANEL, 1)), fontproperties=_NAME.font, pad=33, parse_math=False)
        for panel in axes[len(clouds) :]:
            panel.set_axis_off()
        above.suptitle(title, x=0.012, ha="left", fontsize=12, weight="bold")
        above.supylabel("actual change after retraining (nats)", fontsize=10.5)
        above.supxlabel("predicted change of the test loss on removal (nats)", fontsize=10.5)
        shown = {
            text: handle for panel in axes for handle, text in zip(*panel.get_legend_handles_labels(), strict=True)
        }
        below.legend(shown.values(), shown.keys(), loc="center", ncols=len(shown) if columns > 2 else 3, fontsize=9)
    return figure


def _checked(predicted: Mapping[str, ArrayLike], actual: ArrayLike, n: int) -> tuple[dict[str, Array], Array]:
    y = np.asarray(actual, dtype=np.float64)
    clouds = {name: np.asarray(x, dtype=np.float64) for name, x in predicted.items()}
    if not clouds or any(x.shape != (n,) for x in (y, *clouds.values())):
        shapes = ", ".join(f"{name} {x.shape}" for name, x in {**clouds, "actual": y}.items())
        raise InputError(
            f"The picture needs a method, and one value of each per removal, all [n]; {shapes}, kinds ({n},)."
        )
    return clouds, y


def _panel(axes: Axes, x: Array, y: Array, kinds: np.ndarray, found: Agreement | None, reach: float) -> None:
    defined = np.isfinite(x)
    own = 1.08 * float(np.abs(x[defined]).max(initial=0.0)) or reach
    same = 1 / _SAME_UNITS <= own / reach <= _SAME_UNITS
    width = max(own, reach) if same else own
    axes.set_xlim(-width, width)
    axes.set_ylim(-reach, reach)
    axes.set_box_aspect(1)
    axes.xaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: number(value, "g")))
    axes.tick_params(labelsize=8)
    axes.axhline(0, color=QUIET, linewidth=0.6, zorder=1)
    axes.axvline(0, color=QUIET, linewidth=0.6, zorder=1)
    ends = np.array([-width, width])
    if found is not None:
        axes.plot(ends, found.slope * ends + found.intercept, color=FIT, linewidth=2.4, label="least squares", zorder=2)
    axes.plot(ends, ends, color=INK, linewidth=1.0, linestyle=(0, (4, 3)), label="y = x", zorder=2.5)
    for kind, (colour, marker, name) in KINDS.items():
        chosen = defined & (kinds == kind)
        if chosen.any():
            axes.scatter(
                x[chosen], y[chosen], s=20, color=colour, marker=marker, edgecolor="white", linewidth=0.4, label=name
            )
    note = (
        "\n".join(_statistics_lines(found)) if found else f"no statistics:\n{reason_for_none(x[defined], y[defined])}"
    )
    axes.text(0, 1.03, note, transform=axes.transAxes, fontsize=8, color=QUIET, va="bottom", linespacing=1.35)


def _statistics_lines(found: Agreement) -> list[str]:
    form = ".3f" if 0.01 <= abs(found.slope) < 100 else ".3g"
    return [
        f"Pearson {number(found.pearson, '.3f')} {_between(found.pearson_ci, '.3f')}".rstrip(),
        f"slope {number(found.slope, form)} {_between(found.slope_ci, form)}".rstrip(),
    ]


def _between(interval: Interval | None, form: str) -> str:
    return "" if interval is None else f"[{number(interval[0], form)}, {number(interval[1], form)}]"
