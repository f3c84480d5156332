"""Figures of one test sample. Each function returns a Figure; only `save_figure` writes a file."""

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import ArrayLike, NDArray

from ifloo.agreement import Agreement, Array, Interval
from ifloo.errors import InputError
from ifloo.report.figures.style import CONTROL, DPI, FAINT, FIT, HARMFUL, HELPFUL, INK, QUIET, number, styled
from ifloo.store import replacing
from ifloo.verdict import reason_for_none

_BINS_PER_SIDE = 60


# Reason of a removal: colour, marker, name in the legend. Drawn in this order, so that the test's own top-k is on top.
KINDS = {
    "other": (QUIET, "s", "top-k of other tests"),
    "random": (CONTROL, "^", "random controls"),
    "top": (HELPFUL, "o", "top-k by |s|"),
}


def save_figure(figure: Figure, path: Path | str) -> None:
    """Writes a PNG at 150 dots per inch; an existing file is replaced only when the new one is complete."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=DPI)
    with replacing(path) as file:
        file.write(picture.getbuffer())


def influence_distribution(scores: ArrayLike, train_ids: ArrayLike, top_ids: ArrayLike, *, title: str) -> Figure:
    """Draws the distribution of the scores of all training samples on one test loss.

    All bars have the same width and zero is a bin edge, so no bar mixes helpful and harmful samples; counts are
    logarithmic, so that a tail of single samples is visible beside tens of thousands near zero. The strip below marks
    each of the top-k.

    Args:
        scores: Scores, [n], nats per unit weight; negative = helpful.
        train_ids: Ids of the training samples, [n].
        top_ids: Ids of the top-k by size; each must be in `train_ids`.
        title: Title of the figure, such as "test image 8: a 5, taken for a 6".

    Returns:
        The figure.

    Raises:
        InputError: If the lengths differ, a score is not finite, or a top id is not a training id.
    """
    values, ids = np.asarray(scores, dtype=np.float64), np.asarray(train_ids)
    if values.ndim != 1 or values.shape != ids.shape or not values.size:
        raise InputError(f"A distribution needs one id per score, both [n]; scores {values.shape}, ids {ids.shape}.")
    if bad := int((~np.isfinite(values)).sum()):
        raise InputError(f"{bad} of {values.size} scores are not finite: their distribution cannot be drawn.")
    if unknown := sorted(set(np.asarray(top_ids).tolist()) - set(ids.tolist())):
        raise InputError(f"Top id {unknown[0]} is not among the {ids.size} training ids of the scores.")
    top = np.isin(ids, np.asarray(top_ids))
    with styled(8.4, 5.2) as figure:
        axes, strip = figure.subplots(2, 1, sharex=True, height_ratios=[12, 1])
        handles = [*_bars(axes, values, ids), _rug(strip, values[top])]
        figure.suptitle(title, x=0.012, ha="left", fontsize=12, weight="bold")
        # The legend is above the axes, so that no shape of the distribution can overlap it.
        axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(-0.01, 1.0), borderaxespad=0.2)
        axes.set_ylabel("training samples per bar (log scale)")
        axes.tick_params(axis="x", length=0)
        strip.set_xlabel("influence score s[t, i] (nats per unit weight)")
    return figure


def _bars(axes: Axes, values: Array, ids: NDArray[np.integer]) -> list[Artist]:
    """Draws the histogram and returns its legend entries: for each sign, the count and the strongest sample."""
    reach = float(np.abs(values).max()) or 1.0
    edges = np.linspace(0, reach, _BINS_PER_SIDE + 1)
    handles: list[Artist] = []
    for chosen, bins, colour, name, strongest in (
        (values < 0, -edges[::-1], HELPFUL, "helpful, s < 0", int(values.argmin())),
        (values > 0, edges, HARMFUL, "harmful, s > 0", int(values.argmax())),
    ):
        if chosen.any():
            axes.hist(values[chosen], bins=bins.tolist(), color=colour, edgecolor="white", linewidth=0.3)
            most = f"strongest: id {ids[strongest]}, {number(values[strongest], '+.3g')}"
            handles.append(Patch(color=colour, label=f"{name}: {int(chosen.sum()):,}  ({most})"))
    if zeros := int((values == 0).sum()):
        half = 0.5 * reach / _BINS_PER_SIDE
        axes.hist(np.zeros(zeros), bins=[-half, half], color=QUIET, edgecolor="white", linewidth=0.3)
        handles.append(Patch(color=QUIET, label=f"no effect, s = 0: {zeros:,}"))
    axes.set_yscale("log")
    axes.set_ylim(0.7, None)
    axes.set_xlim(-1.04 * reach, 1.04 * reach)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:,.0f}"))
    axes.grid(False, axis="x")
    axes.axvline(0, color=QUIET, linewidth=0.8)
    return handles


def _rug(strip: Axes, top: Array) -> Artist:
    """Draws a stroke for each of the top-k and returns the legend entry."""
    signs = ((top < 0, HELPFUL), (top > 0, HARMFUL), (top == 0, QUIET))
    for chosen, colour in signs:
        strip.vlines(top[chosen], 0, 1, color=colour, linewidth=1.1, alpha=0.85)
    strip.set_ylim(0, 1)
    strip.set_yticks([])
    strip.grid(False)
    strip.spines["left"].set_visible(False)
    strip.set_ylabel(f"top {len(top):,}", rotation=0, ha="right", va="center")
    helpful, harmful = int((top < 0).sum()), int((top > 0).sum())
    label = f"top {len(top):,} by |s|: {helpful:,} helpful, {harmful:,} harmful"
    return Line2D([], [], color=INK, linestyle="none", marker="|", markersize=10, markeredgewidth=1.3, label=label)


def influence_vs_loo(
    predicted: ArrayLike,
    actual: ArrayLike,
    kinds: Sequence[str],
    agreement: Agreement | None,
    *,
    title: str,
    ids: Sequence[int] | None = None,
    noise_floor: float | None = None,
) -> Figure:
    """Draws predicted against actual changes of one test loss, with the line y = x of exact predictions.

    Args:
        predicted: Predicted changes, [n], nats.
        actual: Actual changes, [n], nats, from refits.
        kinds: Reason of each removal, [n]: keys of `KINDS`.
        agreement: Statistics of all n removals; None if they are undefined.
        title: Title of the figure.
        ids: Ids of the removed samples, [n], used to label the two extreme points; None labels none.
        noise_floor: Largest change covered by the grey band, nats; None draws no band.

    Raises:
        InputError: If the lengths differ.
    """
    x, y = np.asarray(predicted, dtype=np.float64), np.asarray(actual, dtype=np.float64)
    _one_of_each(x, y, kinds, ids)
    with styled(8.8, 5.9) as figure:
        axes, panel = figure.subplots(1, 2, width_ratios=[2.45, 1])
        ends = _equal_limits(axes, x, y)
        if noise_floor is not None:
            axes.axhspan(
                -noise_floor,
                noise_floor,
                color=FAINT,
                zorder=0.5,
                label=f"noise floor, ±{number(noise_floor, '.2g')} nats",
            )
        _lines(axes, ends, agreement)
        _cloud(axes, x, y, np.asarray(kinds))
        axes.set_title(title)
        axes.set_xlabel("predicted change of the test loss on removal (nats)")
        axes.set_ylabel("actual change after retraining (nats)")
        if ids is not None and np.ptp(y) > 0:
            _name_ends(axes, x, y, ids)
        _panel_beside(panel, axes, agreement, reason_for_none(x, y))
    return figure


def _lines(axes: Axes, ends: Array, found: Agreement | None) -> None:
    """Draws y = x dashed over the fitted line, so that both are visible where they coincide."""
    axes.plot(ends, ends, color=INK, linewidth=1.0, linestyle=(0, (5, 3)), zorder=2, label="y = x")
    if found is not None:
        fitted = found.slope * ends + found.intercept
        axes.plot(ends, fitted, color=FIT, linewidth=2.6, zorder=1.8, label="least squares")


def _one_of_each(x: Array, y: Array, kinds: Sequence[str], ids: Sequence[int] | None) -> None:
    if x.ndim != 1 or not x.size or x.shape != y.shape or len(kinds) != len(x) or len(ids or x) != len(x):
        shapes = f"predicted {x.shape}, actual {y.shape}, kinds ({len(kinds)},)"
        shapes += "" if ids is None else f", ids ({len(ids)},)"
        raise InputError(f"The picture needs one value of each per removal, all [n]; {shapes}.")
    if unknown := sorted(set(kinds) - set(KINDS)):
        raise InputError(f"A removal is one of {sorted(KINDS)}; got {unknown}.")


def _cloud(axes: Axes, x: Array, y: Array, kinds: NDArray[np.str_]) -> None:
    for order, (kind, (colour, marker, name)) in enumerate(KINDS.items()):
        chosen = kinds == kind
        if chosen.any():
            points = axes.scatter(
                x[chosen], y[chosen], s=30, marker=marker, color=colour, alpha=0.75, zorder=3 + 0.1 * order
            )
            points.set(edgecolor="white", linewidth=0.5, label=f"{name}: {int(chosen.sum()):,}")


def _equal_limits(axes: Axes, x: Array, y: Array) -> Array:
    low, high = float(min(x.min(), y.min(), 0.0)), float(max(x.max(), y.max(), 0.0))
    margin = 0.07 * (high - low) or 1.0
    axes.set_xlim(low - margin, high + margin)
    axes.set_ylim(low - margin, high + margin)
    axes.set_aspect("equal")
    axes.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]))
    axes.axhline(0, color=QUIET, linewidth=0.6, zorder=1)
    axes.axvline(0, color=QUIET, linewidth=0.6, zorder=1)
    return np.array([low - margin, high + margin])


def _name_ends(axes: Axes, x: Array, y: Array, ids: Sequence[int]) -> None:
    """Labels the points of smallest and largest actual change, on the side away from the line y = x."""
    middle = sum(axes.get_xlim()) / 2
    for at in (int(y.argmin()), int(y.argmax())):
        left = x[at] < middle
        axes.annotate(
            f"id {ids[at]}",
            (x[at], y[at]),
            xytext=(7, -7) if left else (-7, 7),
            textcoords="offset points",
            ha="left" if left else "right",
            va="top" if left else "bottom",
            fontsize=9,
            color=QUIET,
        )


def _panel_beside(panel: Axes, axes: Axes, found: Agreement | None, reason: str) -> None:
    """Fills the column beside the scatter plot, so that no point overlaps it: legend above, statistics below."""
    panel.set_axis_off()
    panel.legend(handles=axes.get_legend_handles_labels()[0], loc="upper left", bbox_to_anchor=(-0.08, 1.02))
    if found is not None:
        _statistics_below(panel, found)
        return
    note = "\n".join(["no statistics:", *textwrap.wrap(reason, 28)])
    panel.text(0, 0.69, note, fontsize=9, color=QUIET, transform=panel.transAxes, va="top")


def _statistics_below(panel: Axes, found: Agreement) -> None:
    entries = [
        ("slope", number(found.slope, ".4f"), _interval_text(found.slope_ci, ".4f")),
        ("Pearson r", number(found.pearson, ".5f"), _interval_text(found.pearson_ci, ".5f")),
        ("Spearman", number(found.spearman, ".5f"), _interval_text(found.spearman_ci, ".5f")),
    ]
    if found.median_rel_err is not None:
        interval = found.median_rel_err_ci
        percent = None if interval is None else (100 * interval[0], 100 * interval[1])
        name = f"median relative error, n = {found.n_rel_err:,}"
        entries.append((name, f"{100 * found.median_rel_err:.3g} %", _interval_text(percent, ".3g", " %")))
    height = 0.69
    for name, value, interval_shown in entries:
        panel.text(0, height, name, fontsize=9, color=QUIET, transform=panel.transAxes, va="top")
        panel.text(0, height - 0.036, value, fontsize=12, weight="bold", transform=panel.transAxes, va="top")
        panel.text(0, height - 0.084, interval_shown, fontsize=9, transform=panel.transAxes, va="top")
        height -= 0.143
    note = f"{found.n:,} removals; in brackets:\n95 % bootstrap intervals"
    panel.text(0, 0.0, note, fontsize=8.5, color=QUIET, transform=panel.transAxes, va="bottom")


def _interval_text(interval: Interval | None, form: str, unit: str = "") -> str:
    if interval is None:
        return "no interval"
    return f"[{number(interval[0], form)}, {number(interval[1], form)}]{unit}"
