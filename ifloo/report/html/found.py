"""Statistics of a page, each computed once because each costs a bootstrap."""

from __future__ import annotations

from collections.abc import Mapping

from ifloo.agreement import Agreement
from ifloo.report.pooled import Pooled
from ifloo.report.verdict import Comparison

ALL = "all"  # key of all tests together, present if there are several tests
Groups = Mapping[str, Agreement | None]
"""Statistics of `all`, `top_k` and `random` removals; None if there are too few."""


def found(compared: Mapping[int, Comparison], together: Pooled | None) -> dict[str, Groups]:
    """Returns the statistics by test id as text, preceded by those of all tests together."""
    pooled = {ALL: together.groups} if together else {}
    return pooled | {str(t): _of(one) for t, one in compared.items()}


def _of(one: Comparison) -> Groups:
    return {"all": one.agreement(), "top_k": one.agreement(one.top), "random": one.agreement(one.control)}
