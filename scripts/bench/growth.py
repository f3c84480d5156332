"""Growth of time and memory with n: the exponent of a power law through runs at several n."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bench.task import Row


def exponents(rows: Sequence[Row]) -> list[Row]:
    """Returns a row for each (work, method) that was measured at two or more n."""
    series: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row["wall_s"] is not None and row["work"] in ("T1", "T100", "R500"):
            series.setdefault((row["work"], row["method"]), []).append(row)
    return [_fitted(found) for found in series.values() if len({row["n"] for row in found}) > 1]


def _fitted(rows: list[Row]) -> Row:
    rows = sorted(rows, key=lambda row: row["n"])
    known = {
        "work": f"growth of {rows[0]['work']}",
        "note": "n = " + ", ".join(f"{row['n']:,}: {row['wall_s']:.3g} s" for row in rows),
        "exponent": _slope(rows, "wall_s"),
        "last_exponent": _slope(rows[-2:], "wall_s"),
        "rss_exponent": _slope(rows, "peak_rss_gb"),
    }
    kept = ("method", "dtype", "p", "scaled_from", "machine")
    return {**dict.fromkeys(rows[0]), **{key: rows[-1].get(key) for key in kept}, **known}


def _slope(rows: list[Row], key: str) -> float:
    """Computes the least-squares slope of log(key) on log(n)."""
    x, y = [math.log(row["n"]) for row in rows], [math.log(row[key]) for row in rows]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)
