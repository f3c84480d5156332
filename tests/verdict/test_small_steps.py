"""Refits at small weight steps: the measured derivative, and what they say where estimates and removals part."""

import json

import numpy as np
import pytest

from ifloo.agreement import agreement
from ifloo.cli import tables
from ifloo.refit import WEIGHTS as REFITTED
from ifloo.store import Layout, LossFile, LossRow
from ifloo.verdict import Verdict, compare
from ifloo.verdict.small_steps import ADVICE, WEIGHTS, SmallSteps
from tests.verdict.results import ACTUAL, IDS, REMOVED, SCORES, Results, T

TOP = REMOVED[:6].tolist()
STEPPED = REMOVED[2:14]
RNG = np.random.default_rng(3)


def add_steps(results, slopes, bend=0.0, noise=0.0, ids=STEPPED):
    """Test losses at 0.9 and 1.1 that rise by `slopes` a unit of weight."""
    for weight in WEIGHTS:
        file = LossFile(results.layout.weight_losses(weight, T))
        for i, slope in zip(ids.tolist(), slopes, strict=True):
            step = weight - 1
            change = slope * step + bend * slope * step**2 + noise * RNG.normal()
            file.add(LossRow(i, results.loss + change, extra={"weight": weight}))


def scores_of(ids):
    return SCORES[np.searchsorted(IDS, ids)].astype(np.float64)


@pytest.fixture
def results(tmp_path):
    return Results(Layout(tmp_path / "out"), removal="zero_weight").write()


def test_the_weights_are_those_of_the_refits():
    assert WEIGHTS == REFITTED


def test_the_derivative_is_measured_and_held_against_the_scores(results):
    slopes = scores_of(STEPPED) * 1.02 + 1e-6 * RNG.normal(size=len(STEPPED))
    add_steps(results, slopes, bend=3.0)
    one = compare(results.layout, T, TOP)
    # The central difference has no second order; two losses near 0.7 differ by their rounding, over a step of 0.2.
    np.testing.assert_allclose(one.steps.derivative, slopes, rtol=0, atol=2e-15)
    found = one.steps.agreement()
    assert found == agreement(scores_of(STEPPED), one.steps.derivative, noise_floor=one.noise_floor / 0.2)
    assert found.slope == pytest.approx(1.02, abs=1e-3)
    said = one.to_json()["small_steps"]
    assert {name: said[name] for name in ("n_refits", "slope", "pearson")} == {
        "n_refits": len(STEPPED),
        "slope": found.slope,
        "pearson": found.pearson,
    }
    assert said["weights"] == [0.9, 1.1]
    assert said["sides"] > 0.98
    assert one.roughness is None
    assert one.to_json()["roughness"] is None
    json.dumps(one.to_json())


def test_the_second_order_is_told_over_the_rows_also_removed(results):
    ids = np.concatenate([STEPPED, IDS[1:5:2]])  # the last two were not removed
    add_steps(results, scores_of(ids), ids=ids)
    one = compare(results.layout, T, TOP)
    changes, scores = ACTUAL[2:14], scores_of(STEPPED)
    median, count = one.steps.second_order_gap(one.ids, one.predicted, one.actual)
    assert median == pytest.approx(np.median(np.abs(changes + scores) / np.abs(scores)), rel=1e-9)
    assert count == len(STEPPED)
    said = one.to_json()["small_steps"]
    assert (said["curvature"], said["n_curvature"], said["n_refits"]) == (median, count, len(ids))


def test_a_sample_with_one_of_both_steps_does_not_count(results):
    add_steps(results, scores_of(STEPPED))
    LossFile(results.layout.weight_losses(0.9, T)).add(LossRow(int(IDS[1]), 0.7))
    assert compare(results.layout, T, TOP).steps.ids.tolist() == STEPPED.tolist()


def test_without_steps_nothing_is_said(results):
    one = compare(results.layout, T, TOP)
    assert one.steps is None
    assert one.roughness is None
    assert {"small_steps", "roughness", "groups", "seed_spread"}.isdisjoint(one.to_json())


def test_two_steps_have_no_statistics(results, capsys):
    add_steps(results, scores_of(STEPPED[:2]), ids=STEPPED[:2])
    one = compare(results.layout, T, TOP)
    assert (one.steps.agreement(), one.roughness) == (None, None)
    assert one.to_json()["small_steps"]["n_refits"] == 2
    tables.verdict(Verdict({T: one}))
    assert "  small steps        2  too few, or nothing varies\n" in capsys.readouterr().out


def told(found):
    return f"Pearson {found.pearson:.3f}, slope {found.slope:.3g}, {found.n} refits"


def test_a_run_whose_removals_leave_the_derivative_is_called_rough(tmp_path, capsys):
    results = Results(Layout(tmp_path / "out"), removal="zero_weight").write()
    path = results.layout.loo_losses(T)
    path.unlink()
    for i, change in [(-1, 0.0), *zip(REMOVED.tolist(), (2 * ACTUAL).tolist(), strict=True)]:
        LossFile(path).add(LossRow(i, results.loss + change))
    add_steps(results, scores_of(STEPPED))
    one = compare(results.layout, T, TOP)
    assert one.agreement().slope > 2
    assert one.roughness == (
        f"Small steps of a weight follow the scores ({told(one.steps.agreement())}), removals do not "
        f"({told(one.agreement())}): from w = 1 all the way to w = 0 this training run is too rough for any influence "
        f"estimate to hold. {ADVICE}"
    )
    assert one.to_json()["roughness"] == one.roughness
    tables.verdict(Verdict({T: one}))
    lines = capsys.readouterr().out.splitlines()
    at = next(k for k, line in enumerate(lines) if line.startswith("  Small steps of a weight follow"))
    assert " ".join(line.strip() for line in lines[at:]) == one.roughness
    assert all(len(line) <= 118 for line in lines[at:])


def test_a_run_whose_small_steps_are_noise_is_called_rough(results):
    add_steps(results, scores_of(STEPPED), noise=1e-3)
    one = compare(results.layout, T, TOP)
    sides = np.corrcoef(results.loss - one.steps.low, one.steps.high - results.loss)[0, 1]
    assert one.steps.up_down_correlation() == pytest.approx(sides)
    assert one.roughness == (
        f"Not even small steps of a weight follow the scores ({told(one.steps.agreement())}), and a step up does not "
        f"undo a step down (Pearson {sides:.3f}): this training run is too rough for any influence estimate to hold. "
        f"{ADVICE}"
    )


def test_scores_that_are_no_derivative_are_not_blamed_on_the_run(results):
    add_steps(results, -3 * scores_of(STEPPED[::-1]))
    one = compare(results.layout, T, TOP)
    assert one.roughness == (
        f"Small steps of a weight do not follow the scores ({told(one.steps.agreement())}), though a step up undoes a "
        "step down (Pearson 1.000): this training run is smooth, but the scores by by hand are not its derivative. "
        "Take another method (Unrolled follows the run itself, if `ifloo fit` recorded it), or a smaller damping."
    )


def test_where_nothing_varies_nothing_is_claimed():
    flat = np.full(5, 0.7)
    steps = SmallSteps(np.arange(5), np.linspace(-1, 1, 5), flat, flat, 0.7, None)
    assert (steps.agreement(), steps.up_down_correlation(), steps.roughness(None, "m")) == (None, None, None)
    assert steps.second_order_gap(np.array([9]), np.ones(1), np.ones(1)) == (None, 0)


def test_the_table_has_a_line_of_them(results, capsys):
    add_steps(results, scores_of(STEPPED))
    one = compare(results.layout, T, TOP)
    tables.verdict(Verdict({T: one}))
    lines = capsys.readouterr().out.splitlines()
    at = lines.index("  refits of one sample at weight 0.9 and 1.1: measured derivative against the scores")
    found = one.steps.agreement()
    assert lines[at + 1].startswith(f"  small steps       12  {found.pearson:.5f} [")
    median, count = one.steps.second_order_gap(one.ids, one.predicted, one.actual)
    assert (
        lines[at + 2]
        == f"  removed altogether (weight 0) they differ from their prediction by {median:.1%} (median of {count})"
    )
    assert lines[at + 3].startswith("  certificate: ")
