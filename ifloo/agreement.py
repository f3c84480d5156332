"""Statistics of predicted against actual changes of a test loss, each with its bootstrap interval."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ifloo.errors import InputError

Interval = tuple[float, float]
Array = NDArray[np.float64]

_LEVEL = 95.0  # percent
_MAX_LEFT_OUT = 0.05  # share of draws without the statistic, beyond which the rest is no fair sample of it
_BLOCK = 1 << 21  # resampled values held at a time; bounds memory for many removals


@dataclass(frozen=True)
class Agreement:
    """How well predicted changes of a test loss (nats) tell the actual ones, over n removals.

    actual = slope · predicted + intercept by least squares; slope is dimensionless, intercept in nats.
    `median_rel_err` is the median of |predicted − actual| / |actual| over the `n_rel_err` rows whose |actual| exceeds
    the noise floor, None when there are none. Intervals hold 95 %; None where too few rows vary to give one.
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
        """Give the entries of verdict.json: each statistic and its `<name>_ci`, the number of rows as `n_refits`."""
        found: dict[str, float | Sequence[float] | None] = {"n_refits": self.n}
        for name in _STATISTICS:
            interval: Interval | None = getattr(self, f"{name}_ci")
            found[name] = getattr(self, name)
            found[f"{name}_ci"] = None if interval is None else list(interval)
        found["n_rel_err"] = self.n_rel_err
        return found


_STATISTICS = ("pearson", "spearman", "slope", "intercept", "median_rel_err")


def agreement(
    predicted: ArrayLike, actual: ArrayLike, *, noise_floor: float = 0.0, draws: int = 2000, seed: int = 0
) -> Agreement:
    """Compare predicted with actual changes of a test loss, both [n] in nats, one row per removal.

    The intervals are 95 % percentile bootstrap intervals over removals (Efron & Tibshirani 1993, chapter 13). A draw in
    which a statistic does not exist (all its rows are equal, or none exceeds the noise floor) is left out of that
    interval; with more than 5 % of such draws there is no interval.

    Args:
        predicted: predicted changes, nats.
        actual: changes seen in refits, nats.
        noise_floor: size of an actual change below which it says nothing, nats; only `median_rel_err` needs it.
        draws: number of bootstrap draws.
        seed: of the draws; the same seed gives the same intervals.

    Raises:
        InputError: not one finite value of each per row, fewer than 3 rows, all rows alike, a floor below 0, no draw.
    """
    x, y = _checked(predicted, actual)
    _check_options(noise_floor, draws)
    # In units of their largest value: no square of a loss change, however small, is rounded to zero.
    unit_x, unit_y = float(np.abs(x).max()), float(np.abs(y).max())
    error = np.full(len(x), np.inf)  # infinity: below the noise floor, sorts behind every number
    above_floor = np.abs(y) > noise_floor
    error[above_floor] = np.abs(x[above_floor] - y[above_floor]) / np.abs(y[above_floor])
    units = np.array([[1.0], [1.0], [unit_y / unit_x], [unit_y], [1.0]])
    ranked_x, ranked_y = _Ranked.of(x / unit_x), _Ranked.of(y / unit_y)

    def statistics(index: NDArray[np.int64]) -> Array:
        return units * _statistics(index, ranked_x, ranked_y, error)

    rng = np.random.default_rng(seed)
    rows = max(1, _BLOCK // len(x))
    sizes = [(min(rows, draws - done), len(x)) for done in range(0, draws, rows)]
    blocks = [statistics(rng.integers(len(x), size=size)) for size in sizes]
    pearson, spearman, slope, intercept, median_rel_err = statistics(np.arange(len(x))[None])[:, 0].tolist()
    intervals = [_interval(drawn) for drawn in np.concatenate(blocks, axis=1)]
    return Agreement(
        n=len(x),
        pearson=pearson,
        spearman=spearman,
        slope=slope,
        intercept=intercept,
        median_rel_err=median_rel_err if above_floor.any() else None,
        n_rel_err=int(above_floor.sum()),
        **{f"{name}_ci": interval for name, interval in zip(_STATISTICS, intervals, strict=True)},
    )


@dataclass(frozen=True)
class _Ranked:
    """Values [n], and the place of each among the distinct ones [n], by which a draw is ranked without sorting it."""

    values: Array
    places: NDArray[np.int64]

    @classmethod
    def of(cls, values: Array) -> "_Ranked":
        return cls(values, np.unique(values, return_inverse=True)[1])

    def ranks(self, index: NDArray[np.int64]) -> Array:
        """Give the ranks within each row of `index` [draws, n], ties by their mean rank."""
        distinct = int(self.places.max()) + 1
        cells = self.places[index] + distinct * np.arange(len(index))[:, None]
        counts = np.bincount(cells.ravel(), minlength=distinct * len(index)).reshape(len(index), distinct)
        # The last of c equal values stands at rank `last`; their mean rank is that less (c - 1) / 2.
        last = counts.cumsum(axis=1)
        ranks: Array = (last - (counts - 1) / 2).ravel()[cells]
        return ranks


def _statistics(index: NDArray[np.int64], x: _Ranked, y: _Ranked, error: Array) -> Array:
    """Give all statistics for each row of `index` [draws, n], as [5, draws]; NaN where one does not exist."""
    X, Y = x.values[index], y.values[index]
    pearson, slope = _correlation_and_slope(X, Y)
    spearman, _ = _correlation_and_slope(x.ranks(index), y.ranks(index))
    intercept = Y.mean(axis=1) - slope * X.mean(axis=1)
    return np.stack([pearson, spearman, slope, intercept, _finite_median(error[index])])


def _correlation_and_slope(X: Array, Y: Array) -> tuple[Array, Array]:
    dx, dy = X - X.mean(axis=1, keepdims=True), Y - Y.mean(axis=1, keepdims=True)
    xx, yy, xy = (dx * dx).sum(axis=1), (dy * dy).sum(axis=1), (dx * dy).sum(axis=1)
    # Equal values need not have exactly their own mean: their range decides. Tiny ones may have squares of zero.
    moves_x, moves_y = (np.ptp(X, axis=1) > 0) & (xx > 0), (np.ptp(Y, axis=1) > 0) & (yy > 0)
    nowhere = np.full(len(X), np.nan)
    slope = np.divide(xy, xx, out=nowhere.copy(), where=moves_x)
    pearson = np.divide(xy, np.sqrt(xx) * np.sqrt(yy), out=nowhere, where=moves_x & moves_y)
    return np.clip(pearson, -1.0, 1.0), slope


def _finite_median(E: Array) -> Array:
    """Give the median of the finite values of each row; NaN for a row without any."""
    E = np.sort(E, axis=1)
    count = np.isfinite(E).sum(axis=1)
    low, high = np.maximum(count - 1, 0) // 2, count // 2
    at = np.arange(len(E))
    return np.where(count > 0, (E[at, low] + E[at, np.minimum(high, E.shape[1] - 1)]) / 2, np.nan)


def _interval(drawn: Array) -> Interval | None:
    there = drawn[~np.isnan(drawn)]
    if len(there) < (1 - _MAX_LEFT_OUT) * len(drawn):
        return None
    low, high = np.percentile(there, [(100 - _LEVEL) / 2, (100 + _LEVEL) / 2])
    return float(low), float(high)


def _check_options(noise_floor: float, draws: int) -> None:
    if not (np.isfinite(noise_floor) and noise_floor >= 0):
        raise InputError(f"The noise floor is {noise_floor} nats; it must be 0 or more.")
    if draws < 1:
        raise InputError(f"The bootstrap was asked for {draws} draws; it needs at least 1 (2000 by default).")


def _checked(predicted: ArrayLike, actual: ArrayLike) -> tuple[Array, Array]:
    x, y = np.asarray(predicted, dtype=np.float64), np.asarray(actual, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise InputError(
            f"Agreement needs one predicted and one actual change per removal, both [n]; "
            f"predicted is {x.shape}, actual is {y.shape}."
        )
    if len(x) < 3:
        raise InputError(f"Agreement needs at least 3 removals, and there are {len(x)}.\n  Refit without more samples.")
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
