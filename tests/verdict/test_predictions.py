"""Further methods in the verdict: on the same refits, and of the same base model or not at all."""

import json
import logging
from dataclasses import replace

import numpy as np
import pytest

from ifloo.agreement import agreement
from ifloo.cli import tables
from ifloo.errors import InputError
from ifloo.report import Reporter
from ifloo.report.figures.methods import methods_comparison
from ifloo.store import Layout, Manifest, influences
from ifloo.verdict import Verdict, compare
from tests.report.drawn import check_readable, texts_of
from tests.verdict.results import ACTUAL, CONTROLS, IDS, REMOVED, SCORES, N, Results, T, stored

NOISY = SCORES + 5e-4 * np.random.default_rng(2).normal(size=N)
TOP = REMOVED[:6].tolist()
MINUS = "\N{MINUS SIGN}"


@pytest.fixture
def results(tmp_path):
    return Results(Layout(tmp_path / "out")).write()


def test_their_files_are_found_in_the_order_of_their_names(results):
    for name in ("tracin", "gradient_dot"):
        results.add_method(name, NOISY)
    folder = results.layout.root / "methods"
    (folder / "leverage_corrected").mkdir()
    assert list(results.layout.existing_methods(T).items()) == [
        ("gradient_dot", folder / "gradient_dot" / f"influences_test_{T}.npz"),
        ("tracin", folder / "tracin" / f"influences_test_{T}.npz"),
    ]
    assert results.layout.existing_methods(T + 1) == {}


@pytest.mark.parametrize("removal", ["drop", "zero_weight"])
def test_each_is_held_against_the_same_refits(tmp_path, removal):
    results = Results(Layout(tmp_path), removal=removal).write()
    results.add_method("noisy", NOISY)
    one = compare(results.layout, T, TOP)
    scores = NOISY.astype(np.float32)[::2].astype(np.float64)
    expected = -(scores - NOISY.mean()) if removal == "drop" else -scores
    np.testing.assert_array_equal(one.other_methods["noisy"], expected)
    # A loss is stored, not its change: the difference of two losses near 0.7 is off by their rounding.
    np.testing.assert_allclose(one.actual, ACTUAL, rtol=0, atol=2e-16)
    found = {row.selection: row.agreement for row in one.statistics.rows if row.method == "noisy"}
    rows = {"all": np.full(len(REMOVED), True), "top_k": np.isin(REMOVED, TOP), "random": np.isin(REMOVED, CONTROLS)}
    assert found == {
        name: agreement(expected[chosen], one.actual[chosen], noise_floor=one.noise_floor)
        for name, chosen in rows.items()
    }
    said = one.to_json()["methods"]["noisy"]
    assert said["pearson"] == found["all"].pearson < one.agreement().pearson
    assert said["top_k"]["slope_ci"] == list(found["top_k"].slope_ci)
    assert said["random"]["n_refits"] == len(CONTROLS)


def test_predictions_that_do_not_vary_have_no_statistics(results, capsys):
    results.add_method("constant", np.full(N, 0.25))
    one = compare(results.layout, T, TOP)
    found = {row.selection: row.agreement for row in one.statistics.rows if row.method == "constant"}
    assert found == {"all": None, "top_k": None, "random": None}
    assert one.to_json()["methods"] == {"constant": {"n_refits": len(REMOVED), "top_k": None, "random": None}}
    tables.verdict(Verdict({T: one}))
    assert "  constant           -  predicts the same change for all of them\n" in capsys.readouterr().out


def of_other_settings(results):
    results.add_method("other", NOISY)
    path = results.layout.method_scores("other", T)
    influences.save(path, replace(influences.load(path), settings="0" * 64))


def without_a_section(results):
    influences.save(results.layout.method_scores("other", T), stored(NOISY, {}))


AGAIN = "  Score it again with this method, with --overwrite."


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (
            lambda r: r.add_method("other", NOISY, {"weights": "c" * 8}),
            f"its scores are of another base model (weights: cccccccc, not aaaaaaaa).\n{AGAIN}",
        ),
        (
            lambda r: r.add_method("other", NOISY, {"objective": {"l2_reg": 1.0}}),
            "its scores are of another base model (objective: {'l2_reg': 1.0}, not {'l2_reg': 0.01}).\n" + AGAIN,
        ),
        (of_other_settings, f"its scores were made with other settings than the manifest says.\n{AGAIN}"),
        (
            lambda r: r.add_method("other", NOISY, test_id=T + 1),
            f"its scores were made with other settings than the manifest says.\n{AGAIN}",
        ),
        (
            without_a_section,
            f"the manifest has no section 'methods/other' to say what its scores are of.\n{AGAIN}",
        ),
        (
            lambda r: r.add_method("other", NOISY, train_ids=IDS + 1),
            f"Test {T}: refits of ids {REMOVED[:5].tolist()} have no score: they are of other data.\n"
            "  Run `ifloo influence` and `ifloo loo` on the same data.",
        ),
    ],
)
def test_what_is_of_another_model_is_left_out_and_said(results, caplog, spoil, reason):
    results.add_method("noisy", NOISY)
    spoil(results)
    with caplog.at_level(logging.WARNING):
        one = compare(results.layout, T, TOP)
    assert [row.method for row in one.statistics.other_methods] == ["noisy"]
    assert caplog.messages == [f"Method other is left out of the verdict on test {T}: {reason}"]


def test_a_damaged_file_does_not_cost_the_verdict(results, caplog):
    results.add_method("other", NOISY)
    results.layout.method_scores("other", T).write_bytes(b"no npz")
    assert compare(results.layout, T, TOP).statistics.other_methods == []
    assert "holds no influence scores of ifloo: not a readable npz" in caplog.text


def test_the_table_has_a_line_for_each_in_one_column(results, capsys):
    results.add_method("gradient_dot", NOISY)
    results.add_method("a_method_of_a_long_name", NOISY)
    one = compare(results.layout, T, TOP)
    tables.verdict(Verdict({T: one}))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == [
        *("refits", "all", "top-k", "random", "all"),
        *("a_method_of_a_long_name", "gradient_dot", "certificate:"),
    ]
    assert lines[6] == "  all of these refits, predicted by further methods"
    columns = [
        lines[at].index(f"{found.pearson:.5f} [")
        for at, found in ((3, one.agreement()), (7, one.statistics.row("all", "a_method_of_a_long_name").agreement))
    ]
    assert columns == [lines[2].index("Pearson")] * 2


def test_a_slope_far_from_one_keeps_its_digits(results, capsys):
    results.add_method("in_other_units", 4000 * NOISY)
    one = compare(results.layout, T, TOP)
    tables.verdict(Verdict({T: one}))
    slope = one.statistics.row("all", "in_other_units").agreement.slope
    assert slope < 3e-4
    assert f"  {slope:.2e} [" in capsys.readouterr().out


def test_where_nothing_was_solved_no_residual_is_told(results, capsys):
    one = compare(results.layout, T, TOP)
    tables.verdict(Verdict({T: replace(one, stored=replace(one.stored, residual=None))}))
    assert "  certificate: no solve, no residual; worst |grad J| of a refit 1.0e-11, noise" in capsys.readouterr().out


class Digits:
    """What a report draws beside scores."""

    def picture(self, id_):
        return np.full((8, 8), id_ % 256, np.uint8)

    def caption(self, id_):
        return str(id_ % 10)


class Both:
    train_set = test_set = Digits()


def test_the_report_draws_them_where_there_are_any(results, tmp_path):
    reporter = Reporter(results.layout, Both(), tmp_path / "logs")
    figure = results.layout.figure("methods_comparison", T)
    reporter.run([T], 6)
    assert not figure.exists()
    results.add_method("noisy", NOISY)
    reporter.run([T], 6)
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert list(json.loads(results.layout.verdict.read_text())["tests"][str(T)]["methods"]) == ["noisy"]
    assert "methods/noisy" in Manifest.at(results.layout.manifest).sections()


def comparison(count=6, kinds=("top", "random", "other")):
    y = np.random.default_rng(0).standard_t(3, 60) * 1e-3
    near = y + 2e-4 * np.random.default_rng(1).normal(size=60)
    clouds = {
        "influence scores": near,
        "in other units": 4e3 * near,
        "constant": np.zeros(60),
        "with gaps": np.where(np.arange(60) < 9, np.nan, near),
        "of the wrong sign": -0.7 * near,
        "a name that is longer than the panel it stands above": near,
    }
    clouds = dict(list(clouds.items())[:count])
    found = {
        name: agreement(x[np.isfinite(x)], y[np.isfinite(x)]) if np.nanmax(x) > np.nanmin(x) else None
        for name, x in clouds.items()
    }
    figure = methods_comparison(
        clouds, y, [kinds[i % len(kinds)] for i in range(60)], found, title="8", noise_floor=1e-4
    )
    return figure, clouds, y, found


def test_a_panel_for_each_method_shows_its_cloud_and_its_slope():
    figure, clouds, y, found = comparison(5)
    figure.canvas.draw()
    panels = {axes.get_title(loc="left"): axes for axes in figure.axes if axes.axison}
    assert list(panels) == list(clouds)
    for name, axes in panels.items():
        drawn = np.concatenate([points.get_offsets() for points in axes.collections])
        there = np.isfinite(clouds[name])
        expected = np.stack([clouds[name][there], y[there]], axis=1)
        np.testing.assert_array_equal(np.unique(drawn, axis=0), np.unique(expected, axis=0))
        assert axes.get_ylim() == panels["influence scores"].get_ylim()
        (low, high), (left, right) = axes.get_ylim(), axes.get_xlim()
        assert max(abs(y)) < high == -low
        assert np.nanmax(np.abs(clouds[name])) < right == -left
        lines = {line.get_label(): line for line in axes.lines}
        np.testing.assert_array_equal(lines["y = x"].get_xdata(), lines["y = x"].get_ydata())
        assert ("least squares" in lines) == (found[name] is not None)
    assert panels["of the wrong sign"].get_xlim() == panels["influence scores"].get_xlim()
    texts = [text.get_text() for text in texts_of(figure)]
    assert f"slope {MINUS}{-found['of the wrong sign'].slope:.3f} " in "".join(t for t in texts if MINUS in t)
    assert f"slope {found['in other units'].slope:.3g} [" in "".join(texts)
    assert "no statistics:\npredicts the same change for all of them" in texts


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6])
def test_no_text_of_the_comparison_covers_another(count):
    check_readable(comparison(count)[0])


def test_a_comparison_of_nothing_is_refused():
    with pytest.raises(InputError) as caught:
        methods_comparison({"one": [1.0, 2.0]}, [1.0, 2.0, 3.0], ["top"] * 3, {}, title="")
    assert str(caught.value) == (
        "The picture needs a method, and one value of each per removal, all [n]; one (2,), actual (3,), kinds (3,)."
    )
