"""The statistics of a page, each calculated once: every one of them costs its bootstrap."""

from __future__ import annotations

from collections.abc import Mapping

from ifloo.agreement import Agreement
from ifloo.report.pooled import Pooled
from ifloo.report.verdict import Comparison

ALL = "all"  # key of all tests together, where there are several
Groups = Mapping[str, Agreement | None]
"""Statistics of `all`, `top_k` and `random` removals; None where there are too few."""


def found(compared: Mapping[int, Comparison], together: Pooled | None) -> dict[str, Groups]:
    """Statistics of each test by its id as text, those of all together first."""
    pooled = {ALL: together.groups} if together else {}
    return pooled | {str(t): _of(one) for t, one in compared.items()}


def _of(one: Comparison) -> Groups:
    return {"all": one.agreement(), "top_k": one.agreement(one.top), "random": one.agreement(one.control)}
