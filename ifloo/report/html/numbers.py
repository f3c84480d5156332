"""Numbers formatted for readers."""

from __future__ import annotations

from collections.abc import Callable

from ifloo.agreement import Interval
from ifloo.report.figures.style import number

NONE = "–"  # placeholder for a missing number
_RAISED = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
_NARROW = "\N{NARROW NO-BREAK SPACE}"


def compact(value: float | None, form: str = ".3g") -> str:
    """Formats a number with three digits and a written power of ten: 1.2 × 10⁻⁹."""
    if value is None:
        return NONE
    mantissa, _, exponent = number(value, form).partition("e")
    if not exponent:
        return mantissa
    power = str(int(exponent.replace("\N{MINUS SIGN}", "-"))).translate(_RAISED)
    return f"{mantissa}{_NARROW}×{_NARROW}10{power}"


def signed(value: float | None) -> str:
    """Formats a number as `compact` does, with its sign."""
    return compact(value, "+.3g")


def correlation(value: float | None, decimals: int | None = None) -> str:
    """Formats a correlation with three decimals, or five if three would round it to 1."""
    if value is None:
        return NONE
    return number(value, f".{_decimals(value) if decimals is None else decimals}f")


def _decimals(value: float) -> int:
    return 5 if 0.9995 <= abs(value) < 1 else 3


def ratio(value: float | None) -> str:
    """Formats a slope, with three decimals if it is between 0.01 and 100 in size."""
    return number(value, ".3f") if value is not None and 0.01 <= abs(value) < 100 else compact(value)


def percent(value: float | None) -> str:
    """Formats a share as a percentage of two or three digits."""
    if value is None:
        return NONE
    if value >= 10:
        return f"{100 * value:,.0f}{_NARROW}%"
    return compact(100 * value, ".2g" if value < 0.1 else ".3g") + f"{_NARROW}%"


def interval(bounds: Interval | None, form: Callable[[float | None], str]) -> str:
    """Formats both ends of an interval in brackets; returns an empty text for None."""
    return "" if bounds is None else f"[{form(bounds[0])}, {form(bounds[1])}]"


def correlations(bounds: Interval | None) -> str:
    """Formats an interval of correlations, both ends with the same number of decimals."""
    if bounds is None:
        return ""
    decimals = max(map(_decimals, bounds))
    return f"[{correlation(bounds[0], decimals)}, {correlation(bounds[1], decimals)}]"


def counted(n: int, one: str, many: str = "") -> str:
    """Formats a count with its noun: 1 refit, 1,200 refits."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"
