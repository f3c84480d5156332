import errno
import os

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgba

from ifloo.agreement import agreement
from ifloo.errors import InputError, WorkError
from ifloo.report.figures.image_grid import TrainingPicture, digit_grid
from ifloo.report.figures.influence import influence_distribution, influence_vs_loo, save_figure
from ifloo.report.figures.style import CONTROL, HARMFUL, HELPFUL, QUIET, STYLE
from ifloo.store import top_k
from tests.report.drawn import check_readable

RNG = np.random.default_rng(0)
SCORES = np.concatenate([RNG.standard_t(3, 5000) * 1e-4, np.zeros(7)])
IDS = np.arange(5007) * 2
PREDICTED = RNG.standard_t(3, 60) * 1e-3
ACTUAL = 1.02 * PREDICTED + 2e-4 * RNG.normal(size=60)
KINDS = ["top"] * 45 + ["random"] * 15
DIGIT = RNG.integers(0, 256, (28, 28), dtype=np.uint8)


def distribution():
    return influence_distribution(SCORES, IDS, top_k(SCORES, IDS, 20), title="test image 8")


def comparison(**options):
    found = agreement(PREDICTED, ACTUAL)
    return influence_vs_loo(PREDICTED, ACTUAL, KINDS, found, title="test image 8", ids=range(60), **options)


def grid(helpful=5, harmful=5):
    def pictures(count, sign):
        return [TrainingPicture(i, DIGIT, f"label {i % 10}", sign * 0.0123 / (i + 1)) for i in range(count)]

    return digit_grid(DIGIT, "test image 8: a 5\npredicted 6", pictures(helpful, -1), pictures(harmful, 1), title="8")


def labels_of(legend):
    return [text.get_text() for text in legend.get_texts()]


def test_distribution_counts_every_sample_once_in_its_colour():
    axes, strip = distribution().axes
    drawn = {}
    for bar in axes.patches:
        drawn[bar.get_facecolor()] = drawn.get(bar.get_facecolor(), 0) + bar.get_height()
        if bar.get_facecolor() == to_rgba(HELPFUL):
            assert bar.get_x() + bar.get_width() <= 1e-18
        if bar.get_facecolor() == to_rgba(HARMFUL):
            assert bar.get_x() >= -1e-18
    helpful, harmful = int((SCORES < 0).sum()), int((SCORES > 0).sum())
    assert drawn == {to_rgba(HELPFUL): helpful, to_rgba(HARMFUL): harmful, to_rgba(QUIET): 7}
    assert axes.get_yscale() == "log"
    assert strip.get_xlabel() == "influence score s[t, i] (nats per unit weight)"
    low, high = SCORES.argmin(), SCORES.argmax()
    top = SCORES[np.argsort(-np.abs(SCORES))[:20]]
    minus = "\N{MINUS SIGN}"
    assert labels_of(axes.get_legend()) == [
        f"helpful, s < 0: {helpful:,}  (strongest: id {2 * low}, {SCORES[low]:.3g})".replace(", -", f", {minus}"),
        f"harmful, s > 0: {harmful:,}  (strongest: id {2 * high}, +{SCORES[high]:.3g})",
        "no effect, s = 0: 7",
        f"top 20 by |s|: {(top < 0).sum()} helpful, {(top > 0).sum()} harmful",
    ]
    strokes = np.concatenate([np.array(c.get_segments())[:, 0, 0] for c in strip.collections if c.get_segments()])
    np.testing.assert_array_equal(np.sort(strokes), np.sort(top))


def test_comparison_shows_what_it_claims():
    figure = comparison(noise_floor=1e-4)
    axes, panel = figure.axes
    figure.canvas.draw()
    assert axes.get_xlim() == axes.get_ylim()
    assert axes.get_window_extent().width == pytest.approx(axes.get_window_extent().height)
    lines = {line.get_label(): line for line in axes.lines}
    np.testing.assert_array_equal(lines["y = x"].get_xdata(), lines["y = x"].get_ydata())
    np.testing.assert_array_equal(lines["y = x"].get_xdata(), axes.get_xlim())
    slope, intercept = np.polyfit(PREDICTED, ACTUAL, 1)
    fit = lines["least squares"]
    np.testing.assert_allclose(fit.get_ydata(), slope * fit.get_xdata() + intercept, rtol=1e-9)
    controls, top = axes.collections
    np.testing.assert_array_equal(top.get_offsets(), np.stack([PREDICTED, ACTUAL], 1)[:45])
    np.testing.assert_array_equal(controls.get_offsets(), np.stack([PREDICTED, ACTUAL], 1)[45:])
    assert tuple(controls.get_facecolor()[0][:3]) == to_rgba(CONTROL)[:3]
    assert labels_of(panel.get_legend()) == [
        "noise floor, ±0.0001 nats",
        "y = x",
        "least squares",
        "random controls: 15",
        "top-k by |s|: 45",
    ]
    found = agreement(PREDICTED, ACTUAL)
    shown = [text.get_text() for text in panel.texts]
    assert shown[:6] == [
        "slope",
        f"{found.slope:.4f}",
        f"[{found.slope_ci[0]:.4f}, {found.slope_ci[1]:.4f}]",
        "Pearson r",
        f"{found.pearson:.5f}",
        f"[{found.pearson_ci[0]:.5f}, {found.pearson_ci[1]:.5f}]",
    ]
    assert shown[9] == "median relative error, n = 60"
    assert {text.get_text() for text in axes.texts} == {f"id {ACTUAL.argmin()}", f"id {ACTUAL.argmax()}"}


def test_comparison_without_intervals_controls_or_floor():
    x, y = [1.0, 2.0, 3.0], [-1.0, -2.0, -4.0]
    figure = influence_vs_loo(x, y, ["top"] * 3, agreement(x, y, noise_floor=9.0), title="few")
    panel = figure.axes[1]
    assert labels_of(panel.get_legend()) == ["y = x", "least squares", "top-k by |s|: 3"]
    shown = [text.get_text() for text in panel.texts]
    assert shown[:3] == ["slope", "\N{MINUS SIGN}1.5000", "no interval"]
    assert len(shown) == 10


def without_statistics():
    return influence_vs_loo(PREDICTED, np.full(60, -1.5e-3), KINDS, None, title="test image 8", ids=range(60))


def test_comparison_without_statistics_says_why():
    figure = without_statistics()
    axes, panel = figure.axes
    assert labels_of(panel.get_legend()) == ["y = x", "random controls: 15", "top-k by |s|: 45"]
    (note,) = panel.texts
    assert " ".join(note.get_text().split()) == "no statistics: all actual changes are -0.0015 nats"
    assert len(np.concatenate([points.get_offsets() for points in axes.collections])) == 60


@pytest.mark.parametrize(("helpful", "harmful"), [(5, 5), (11, 2), (2, 0), (0, 0)])
def test_grid_shows_every_digit_with_label_id_and_score(helpful, harmful):
    figure = grid(helpful, harmful)
    shown = [axes for axes in figure.axes if axes.images]
    assert len(shown) == 1 + helpful + harmful
    assert all(axes.images[0].get_clim() == (0, 255) for axes in shown)
    titles = [axes.get_title() for axes in shown[1:]]
    assert titles == [f"label {i % 10}\n\N{MINUS SIGN}{0.0123 / (i + 1):.3g}" for i in range(helpful)] + [
        f"label {i % 10}\n+{0.0123 / (i + 1):.3g}" for i in range(harmful)
    ]
    assert [axes.get_xlabel() for axes in shown[1:]] == [f"id {i}" for i in (*range(helpful), *range(harmful))]


@pytest.mark.parametrize("draw", [distribution, comparison, without_statistics, grid, lambda: grid(11, 3)])
def test_no_text_covers_another_or_leaves_the_picture(draw):
    check_readable(draw())


def test_the_style_does_not_leak():
    before = {name: matplotlib.rcParams[name] for name in STYLE}
    distribution()
    assert {name: matplotlib.rcParams[name] for name in STYLE} == before


def test_a_picture_replaces_the_old_one_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "figs" / "digits_test_8.png"
    save_figure(grid(), path)
    before = path.read_bytes()
    assert before.startswith(b"\x89PNG")

    def no_space(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(WorkError, match="No space left on device"):
        save_figure(grid(2, 2), path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (
            lambda: influence_distribution([1.0], [1, 2], [], title=""),
            "A distribution needs one id per score, both [n]; scores (1,), ids (2,).",
        ),
        (
            lambda: influence_distribution([1.0, np.nan], [1, 2], [], title=""),
            "1 of 2 scores are not finite: their distribution cannot be drawn.",
        ),
        (
            lambda: influence_distribution([1.0, 2.0], [1, 2], [3], title=""),
            "Top id 3 is not among the 2 training ids of the scores.",
        ),
        (
            lambda: influence_vs_loo(
                PREDICTED, ACTUAL[:3], KINDS, agreement(PREDICTED, ACTUAL), title="", ids=range(60)
            ),
            "The picture needs one value of each per removal, all [n]; "
            "predicted (60,), actual (3,), kinds (60,), ids (60,).",
        ),
        (
            lambda: influence_vs_loo(PREDICTED, ACTUAL, ["control"] * 60, agreement(PREDICTED, ACTUAL), title=""),
            "A removal is one of ['other', 'random', 'top']; got ['control'].",
        ),
        (
            lambda: digit_grid(DIGIT, "", [TrainingPicture(4, DIGIT[None], "", 0.1)], [], title=""),
            "Training image 4 has shape (1, 28, 28); the grid shows images, [height, width] or [height, width, 3].",
        ),
    ],
)
def test_bad_input_is_not_drawn(draw, message):
    with pytest.raises(InputError) as caught:
        draw()
    assert str(caught.value) == message
