import json
import re

import numpy as np
import pytest
from scipy import stats

import ifloo.agreement
from ifloo.agreement import agreement
from ifloo.errors import InputError


def removals(n=30, seed=0):
    """Predictions with two ties and actual changes 3 % larger, with noise; nats, of MNIST's size."""
    rng = np.random.default_rng(seed)
    predicted = rng.standard_t(3, n) * 1e-3
    predicted[1] = predicted[0]
    return predicted, 1.03 * predicted + rng.normal(0, 2e-4, n) + 1e-5


def by_scipy(x, y, floor):
    line = stats.linregress(x, y)
    heard = np.abs(y) > floor
    error = np.median(np.abs(x - y)[heard] / np.abs(y)[heard]) if heard.any() else None
    spearman = stats.spearmanr(x, y).statistic
    return {
        "pearson": line.rvalue,
        "spearman": spearman,
        "slope": line.slope,
        "intercept": line.intercept,
        "median_rel_err": error,
    }


@pytest.mark.parametrize("floor", [0.0, 5e-4])
def test_equals_scipy_and_a_bootstrap_by_hand(floor):
    x, y = removals()
    found = agreement(x, y, noise_floor=floor, draws=300, seed=7)
    index = np.random.default_rng(7).integers(len(x), size=(300, len(x)))
    drawn = [by_scipy(x[rows], y[rows], floor) for rows in index]
    for name, expected in by_scipy(x, y, floor).items():
        assert getattr(found, name) == pytest.approx(expected, rel=1e-11)
        ends = np.percentile([draw[name] for draw in drawn], [2.5, 97.5])
        assert getattr(found, f"{name}_ci") == pytest.approx(ends, rel=1e-10, abs=1e-18)
    assert found.n == 30
    assert found.n_rel_err == (np.abs(y) > floor).sum()


def test_ranks_of_a_draw_are_those_of_sorting_it():
    """Bit for bit: half ranks are exact. A draw repeats rows, and rows repeat values."""
    values = np.round(np.random.default_rng(3).standard_t(3, 200), 1)
    assert len(np.unique(values)) < 100
    index = np.random.default_rng(4).integers(200, size=(50, 200))
    found = ifloo.agreement._Ranked.of(values).ranks(index)
    np.testing.assert_array_equal(found, stats.rankdata(values[index], axis=1))


def test_memory_bound_does_not_show_in_the_result(monkeypatch):
    x, y = removals()
    whole = agreement(x, y)
    for block in (1, 7 * len(x)):
        monkeypatch.setattr(ifloo.agreement, "_BLOCK", block)
        assert agreement(x, y, draws=2000) == whole
    assert agreement(x, y, seed=1) != whole


def test_intervals_hold_what_they_promise():
    """Over 300 data sets the 95 % interval of the slope covers the true one about 95 % of the time."""
    covered = 0
    for seed in range(300):
        x = np.random.default_rng(seed).normal(size=60)
        y = 1.03 * x + np.random.default_rng(1000 + seed).normal(0, 0.2, 60)
        low, high = agreement(x, y, draws=400).slope_ci
        covered += low <= 1.03 <= high
    assert 0.88 <= covered / 300 <= 0.98


def test_perfect_agreement_and_its_scale():
    """Nothing is lost at any size of the changes, to where squares would underflow."""
    x, _ = removals()
    for unit in (1.0, 1e-12, 1e-200):
        found = agreement(x * unit, 2 * x * unit)
        assert (found.pearson, found.spearman, found.slope) == pytest.approx((1, 1, 2), rel=1e-14)
        assert found.slope_ci == pytest.approx((2, 2), rel=1e-13)
        assert found.median_rel_err == pytest.approx(0.5)
        assert abs(found.intercept) < 1e-15 * unit


def test_no_interval_where_too_many_draws_are_degenerate():
    few = agreement([1.0, 2.0, 3.0], [1.0, 2.0, 4.0])  # 1 draw in 9 repeats one row three times
    assert (few.pearson_ci, few.spearman_ci, few.slope_ci, few.intercept_ci) == (None, None, None, None)
    assert few.median_rel_err_ci == (0.0, 0.25)
    enough = agreement([1.0, 2.0, 3.0, 5.0], [1.0, 2.0, 4.0, 4.5])  # 1 in 64
    assert enough.slope_ci is not None
    # The slope exists where actual does not vary, the correlation does not.
    flat = agreement(np.arange(8.0), [0, 0, 0, 0, 0, 0, 0, 1.0])
    assert flat.pearson_ci is None
    assert flat.slope_ci is not None


def test_no_relative_error_below_the_noise_floor():
    x, y = removals()
    silent = agreement(x, y, noise_floor=1.0)
    assert (silent.median_rel_err, silent.median_rel_err_ci, silent.n_rel_err) == (None, None, 0)
    loud = agreement(x, y, noise_floor=np.sort(np.abs(y))[-2])  # one row: a third of the draws miss it
    assert loud.n_rel_err == 1
    assert loud.median_rel_err is not None
    assert loud.median_rel_err_ci is None


def test_json_has_the_form_of_the_verdict():
    found = agreement([1.0, 2.0, 3.0], [1.0, 2.0, 4.0]).to_json()
    assert json.loads(json.dumps(found, allow_nan=False)) == {
        "n_refits": 3,
        "pearson": pytest.approx(0.98198050606),
        "pearson_ci": None,
        "spearman": pytest.approx(1.0),
        "spearman_ci": None,
        "slope": pytest.approx(1.5),
        "slope_ci": None,
        "intercept": pytest.approx(-2 / 3),
        "intercept_ci": None,
        "median_rel_err": 0.0,
        "median_rel_err_ci": [0.0, 0.25],
        "n_rel_err": 3,
    }


@pytest.mark.parametrize(
    ("predicted", "actual", "options", "message"),
    [
        (
            [1.0, 2.0, 3.0],
            [1.0, 2.0],
            {},
            "Agreement needs one predicted and one actual change per removal, both [n]; "
            "predicted is (3,), actual is (2,).",
        ),
        (
            [[1.0, 2.0, 3.0]],
            [[1.0, 2.0, 3.0]],
            {},
            "Agreement needs one predicted and one actual change per removal, both [n]; "
            "predicted is (1, 3), actual is (1, 3).",
        ),
        (
            [1.0, 2.0],
            [1.0, 2.0],
            {},
            "Agreement needs at least 3 removals, got 2.\n  Refit without more samples.",
        ),
        (
            [1.0, np.nan, np.inf],
            [1.0, 2.0, 3.0],
            {},
            "2 of 3 predicted changes are not finite (the first is nan in row 1).",
        ),
        (
            [1.0, 2.0, 3.0],
            [1.0, 2.0, -np.inf],
            {},
            "1 of 3 actual changes are not finite (the first is -inf in row 2).",
        ),
        (
            [0.0, 0.0, 0.0],
            [1.0, 2.0, 3.0],
            {},
            "All 3 predicted changes are 0.0 nats: nothing varies that could agree.\n  Are the scores all zero?",
        ),
        (
            [1.0, 2.0, 3.0],
            [0.5, 0.5, 0.5],
            {},
            "All 3 actual changes are 0.5 nats: nothing varies that could agree.\n  Did the refits take any step?",
        ),
        ([1, 2, 3], [1, 2, 4], {"noise_floor": -1.0}, "The noise floor is -1.0 nats; it must be 0 or more."),
        ([1, 2, 3], [1, 2, 4], {"noise_floor": np.nan}, "The noise floor is nan nats; it must be 0 or more."),
        (
            [1, 2, 3],
            [1, 2, 4],
            {"draws": 0},
            "The number of bootstrap draws is 0; it must be at least 1 (2000 by default).",
        ),
    ],
)
def test_bad_input_never_yields_a_number(predicted, actual, options, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        agreement(predicted, actual, **options)
