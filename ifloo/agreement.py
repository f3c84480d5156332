"""Statistics of predicted against actual changes of a test loss, each with its bootstrap interval."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ifloo.errors import InputError

Interval = tuple[float, float]
Array = NDArray[np.float64]

_LEVEL = 95.0  # percent
_MAX_UNDEFINED = 0.05  # share of draws in which a statistic may be undefined; with more, the others are a biased sample
_BLOCK = 1 << 21  # number of resampled values held at a time; bounds the memory for many removals


@dataclass(frozen=True)
class Agreement:
    """Agreement of predicted with actual changes of a test loss (nats) over n removals.

    actual = slope · predicted + intercept by least squares; the slope is dimensionless, the intercept is in nats.
    `median_rel_err` is the median of |predicted − actual| / |actual| over the `n_rel_err` rows whose |actual| exceeds
    the noise floor, or None if no row does. The confidence level of an interval is 95 %; an interval is None where the
    statistic is undefined in too many bootstrap draws.
    """

    n: int
    pearson: float
    spearman: float
    slope: float
    intercept: float
    median_rel_err: float | None
    n_rel_err: int
    pearson_ci: Interval | None
    spearman_ci: Interval | None
    slope_ci: Interval | None
    intercept_ci: Interval | None
    median_rel_err_ci: Interval | None

    def to_json(self) -> dict[str, float | Sequence[float] | None]:
        """Returns the entries of verdict.json: `n_refits`, and each statistic with its `<name>_ci`."""
        entries: dict[str, float | Sequence[float] | None] = {"n_refits": self.n}
        for name in _Statistics._fields:
            interval: Interval | None = getattr(self, f"{name}_ci")
            entries[name] = getattr(self, name)
            entries[f"{name}_ci"] = None if interval is None else list(interval)
        entries["n_rel_err"] = self.n_rel_err
        return entries


def agreement(
    predicted: ArrayLike, actual: ArrayLike, *, noise_floor: float = 0.0, draws: int = 2000, seed: int = 0
) -> Agreement:
    """Compares predicted with actual changes of a test loss, both [n] in nats, one row per removal.

    The intervals are 95 % percentile bootstrap intervals over removals (Efron & Tibshirani 1993, chapter 13). The
    interval of a statistic leaves out the draws in which that statistic is undefined (all rows of the draw are equal,
    or none exceeds the noise floor). If more than 5 % of the draws are left out, the interval is None.

    Args:
        predicted: Predicted changes, nats.
        actual: Changes measured by refits, nats.
        noise_floor: Size of an actual change below which it is indistinguishable from noise, nats; only
            `median_rel_err` depends on it.
        draws: Number of bootstrap draws.
        seed: Random seed of the draws; the same seed gives the same intervals.

    Raises:
        InputError: The two are not finite values of the same number of rows, have fewer than 3 rows or are constant;
            the noise floor is negative; or `draws` is below 1.
    """
    x, y = _checked(predicted, actual)
    _check_options(noise_floor, draws)
    error = np.full(len(x), np.inf)  # infinity marks a change below the noise floor; it sorts behind every number
    above_floor = np.abs(y) > noise_floor
    error[above_floor] = np.abs(x[above_floor] - y[above_floor]) / np.abs(y[above_floor])
    ranked_x, ranked_y = _Ranked.of(x), _Ranked.of(y)
    rng = np.random.default_rng(seed)
    rows = max(1, _BLOCK // len(x))
    sizes = [(min(rows, draws - done), len(x)) for done in range(0, draws, rows)]
    blocks = [_statistics(rng.integers(len(x), size=size), ranked_x, ranked_y, error) for size in sizes]
    intervals = [_interval(np.concatenate(of_blocks)) for of_blocks in zip(*blocks, strict=True)]
    estimate = _statistics(np.arange(len(x))[None], ranked_x, ranked_y, error)
    return Agreement(
        n=len(x),
        pearson=float(estimate.pearson[0]),
        spearman=float(estimate.spearman[0]),
        slope=float(estimate.slope[0]),
        intercept=float(estimate.intercept[0]),
        median_rel_err=float(estimate.median_rel_err[0]) if above_floor.any() else None,
        n_rel_err=int(above_floor.sum()),
        **{f"{name}_ci": interval for name, interval in zip(_Statistics._fields, intervals, strict=True)},
    )


@dataclass(frozen=True)
class _Ranked:
    """Scaled values with what is needed to rank a bootstrap draw of them without sorting it.

    Attributes:
        values: Changes divided by `unit`, [n].
        places: Position of each value among the distinct values in increasing order, [n].
        unit: Largest absolute change, nats: no square of a scaled change, however small, is rounded to zero.
    """

    values: Array
    places: NDArray[np.int64]
    unit: float

    @classmethod
    def of(cls, changes: Array) -> "_Ranked":
        unit = float(np.abs(changes).max())
        values = changes / unit
        return cls(values, np.unique(values, return_inverse=True)[1], unit)

    def ranks(self, index: NDArray[np.int64]) -> Array:
        """Returns the ranks within each row of `index` [draws, n]; tied values share their mean rank."""
        distinct = int(self.places.max()) + 1
        cells = self.places[index] + distinct * np.arange(len(index))[:, None]
        counts = np.bincount(cells.ravel(), minlength=distinct * len(index)).reshape(len(index), distinct)
        # The last of c equal values stands at rank `last`; their mean rank is that less (c - 1) / 2.
        last = counts.cumsum(axis=1)
        ranks: Array = (last - (counts - 1) / 2).ravel()[cells]
        return ranks


class _Statistics(NamedTuple):
    """Statistics of a number of draws, each [draws] in the units of `Agreement`; NaN where undefined."""

    pearson: Array
    spearman: Array
    slope: Array
    intercept: Array
    median_rel_err: Array


def _statistics(index: NDArray[np.int64], x: _Ranked, y: _Ranked, error: Array) -> _Statistics:
    """Returns the statistics of the draw in each row of `index` [draws, n]."""
    X, Y = x.values[index], y.values[index]
    pearson, slope = _correlation_and_slope(X, Y)
    spearman, _ = _correlation_and_slope(x.ranks(index), y.ranks(index))
    intercept = Y.mean(axis=1) - slope * X.mean(axis=1)
    return _Statistics(
        pearson=pearson,
        spearman=spearman,
        slope=slope * (y.unit / x.unit),
        intercept=intercept * y.unit,
        median_rel_err=_finite_median(error[index]),
    )


def _correlation_and_slope(X: Array, Y: Array) -> tuple[Array, Array]:
    dx, dy = X - X.mean(axis=1, keepdims=True), Y - Y.mean(axis=1, keepdims=True)
    xx, yy, xy = (dx * dx).sum(axis=1), (dy * dy).sum(axis=1), (dx * dy).sum(axis=1)
    # The mean of equal values can differ from them by rounding, so the range decides whether they vary. Differences of
    # varying values can be so small that their squares are zero.
    varies_x, varies_y = (np.ptp(X, axis=1) > 0) & (xx > 0), (np.ptp(Y, axis=1) > 0) & (yy > 0)
    undefined = np.full(len(X), np.nan)
    slope = np.divide(xy, xx, out=undefined.copy(), where=varies_x)
    pearson = np.divide(xy, np.sqrt(xx) * np.sqrt(yy), out=undefined.copy(), where=varies_x & varies_y)
    return np.clip(pearson, -1.0, 1.0), slope


def _finite_median(E: Array) -> Array:
    """Returns the median of the finite values of each row; NaN for a row without finite values."""
    E = np.sort(E, axis=1)
    count = np.isfinite(E).sum(axis=1)
    low, high = np.maximum(count - 1, 0) // 2, count // 2
    row = np.arange(len(E))
    return np.where(count > 0, (E[row, low] + E[row, np.minimum(high, E.shape[1] - 1)]) / 2, np.nan)


def _interval(draws: Array) -> Interval | None:
    """Returns the percentile interval of a statistic over its draws; None where too many of them are undefined."""
    defined = draws[~np.isnan(draws)]
    if len(defined) < (1 - _MAX_UNDEFINED) * len(draws):
        return None
    low, high = np.percentile(defined, [(100 - _LEVEL) / 2, (100 + _LEVEL) / 2])
    return float(low), float(high)


def _check_options(noise_floor: float, draws: int) -> None:
    if not (np.isfinite(noise_floor) and noise_floor >= 0):
        raise InputError(f"The noise floor is {noise_floor} nats; it must be 0 or more.")
    if draws < 1:
        raise InputError(f"The number of bootstrap draws is {draws}; it must be at least 1 (2000 by default).")


def _checked(predicted: ArrayLike, actual: ArrayLike) -> tuple[Array, Array]:
    x, y = np.asarray(predicted, dtype=np.float64), np.asarray(actual, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise InputError(
            f"Agreement needs one predicted and one actual change per removal, both [n]; "
            f"predicted is {x.shape}, actual is {y.shape}."
        )
    if len(x) < 3:
        raise InputError(f"Agreement needs at least 3 removals, got {len(x)}.\n  Refit without more samples.")
    for name, values in (("predicted", x), ("actual", y)):
        if len(bad := np.flatnonzero(~np.isfinite(values))):
            raise InputError(
                f"{len(bad)} of {len(values)} {name} changes are not finite "
                f"(the first is {values[bad[0]]} in row {bad[0]})."
            )
        if np.ptp(values) == 0:
            cause = "Are the scores all zero?" if name == "predicted" else "Did the refits take any step?"
            raise InputError(
                f"All {len(values)} {name} changes are {values[0]} nats: nothing varies that could agree.\n  {cause}"
            )
    return x, y
