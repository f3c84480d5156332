"""Numbers as people read them."""

from __future__ import annotations

from collections.abc import Callable

from ifloo.agreement import Interval
from ifloo.report.style import number

NONE = "–"  # where there is no number
_RAISED = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
_NARROW = "\N{NARROW NO-BREAK SPACE}"


def compact(value: float | None, form: str = ".3g") -> str:
    """Three digits, powers of ten as such: 1.2 × 10⁻⁹."""
    if value is None:
        return NONE
    mantissa, _, exponent = number(value, form).partition("e")
    if not exponent:
        return mantissa
    power = str(int(exponent.replace("\N{MINUS SIGN}", "-"))).translate(_RAISED)
    return f"{mantissa}{_NARROW}×{_NARROW}10{power}"


def signed(value: float | None) -> str:
    """The same with its sign."""
    return compact(value, "+.3g")


def correlation(value: float | None, decimals: int | None = None) -> str:
    """Three decimals; five where three would round it to 1."""
    if value is None:
        return NONE
    return number(value, f".{_decimals(value) if decimals is None else decimals}f")


def _decimals(value: float) -> int:
    return 5 if 0.9995 <= abs(value) < 1 else 3


def ratio(value: float | None) -> str:
    """A slope: three decimals where it is anywhere near 1."""
    return number(value, ".3f") if value is not None and 0.01 <= abs(value) < 100 else compact(value)


def percent(value: float | None) -> str:
    """A share as a percentage of two digits or three."""
    if value is None:
        return NONE
    if value >= 10:
        return f"{100 * value:,.0f}{_NARROW}%"
    return compact(100 * value, ".2g" if value < 0.1 else ".3g") + f"{_NARROW}%"


def interval(bounds: Interval | None, form: Callable[[float | None], str]) -> str:
    """Both ends in brackets; nothing where there is no interval."""
    return "" if bounds is None else f"[{form(bounds[0])}, {form(bounds[1])}]"


def correlations(bounds: Interval | None) -> str:
    """The same of correlations, both ends to as many decimals."""
    if bounds is None:
        return ""
    decimals = max(map(_decimals, bounds))
    return f"[{correlation(bounds[0], decimals)}, {correlation(bounds[1], decimals)}]"


def counted(n: int, one: str, many: str = "") -> str:
    """1 refit, 1,200 refits."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"
