"""Judgement of the verdict in plain words: whether the predicted changes came true."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from ifloo.agreement import Agreement
from ifloo.verdict.small_steps import REMOVED_PEARSON, REMOVED_SLOPES
from ifloo.verdict.verdict_json import Verdict

ROUGHLY = 0.5  # lowest correlation at which predictions count as roughly true
FEW_REFITS = 10  # number of refits below which a bootstrap interval is narrower than it should be


class Level(Enum):
    """Degree to which the predicted changes came true; the value is the text for one test in a table."""

    TRUE = "came true"
    ORDER = "right order, wrong size"
    ROUGH = "roughly true"
    UNTRUE = "did not come true"
    UNDEFINED = "cannot be judged"


@dataclass(frozen=True)
class Judgement:
    """Level that a statistic reaches.

    Attributes:
        level: Level of the statistic itself.
        sure: Whether all of its intervals has the same level and there are at least `FEW_REFITS` refits.
    """

    level: Level
    sure: bool

    def __str__(self) -> str:
        return f"{self.level.value}{'' if self.sure or self.level is Level.UNDEFINED else ', not certain'}"


@dataclass(frozen=True)
class Headline:
    """Verdict on all tests in one sentence.

    Attributes:
        tone: `good`, `middling`, `bad` or `none`.
        text: Sentence.
    """

    tone: str
    text: str


def judge(found: Agreement | None) -> Judgement:
    """Returns the level of Pearson correlation and slope; `TRUE` has the same bounds as the check for smoothness."""
    if found is None:
        return Judgement(Level.UNDEFINED, False)
    level = _level(found.pearson, found.slope)
    if found.n < FEW_REFITS or found.pearson_ci is None or found.slope_ci is None:
        return Judgement(level, False)
    pearsons, slopes = _met(found.pearson_ci, (ROUGHLY, REMOVED_PEARSON)), _met(found.slope_ci, REMOVED_SLOPES)
    return Judgement(level, {_level(p, s) for p in pearsons for s in slopes} == {level})


def _met(interval: tuple[float, float], bounds: Sequence[float]) -> list[float]:
    """Returns the ends of an interval and the bounds of levels within it: together they meet each level of it."""
    low, high = interval
    return [low, high, *(bound for bound in bounds if low <= bound <= high)]


def _level(pearson: float, slope: float) -> Level:
    if pearson >= REMOVED_PEARSON:
        return Level.TRUE if REMOVED_SLOPES[0] <= slope <= REMOVED_SLOPES[1] else Level.ORDER
    return Level.ROUGH if pearson >= ROUGHLY else Level.UNTRUE


def headline_of(verdict: Verdict) -> Headline:
    """Returns the headline of a verdict on at least one test."""
    if any(one.roughness for one in verdict.values()):
        return Headline("bad", "This training run does not let its predictions be trusted.")
    each = [judge(one.agreement()) for one in verdict.values()]
    return _headline(each, sum(len(one.ids) for one in verdict.values()))


def _headline(each: Sequence[Judgement], refits: int) -> Headline:
    """Returns the headline by the levels of the tests."""
    levels = Counter(one.level for one in each)
    if len(levels) > 1:
        good = levels[Level.TRUE]
        scope = f"for {good} of {len(each)} test samples" if good else "for none of the test samples in full"
        return Headline("middling" if good else "bad", f"The predicted changes came true {scope}.")
    level, sure = each[0].level, all(one.sure for one in each)
    hedge = "" if sure else f", as far as {refits:,} refit{'' if refits == 1 else 's'} can tell"
    return {
        Level.TRUE: Headline("good" if sure else "middling", f"The predicted changes came true{hedge}."),
        Level.ORDER: Headline("middling", f"The predictions are right in order, but not in size{hedge}."),
        Level.ROUGH: Headline("middling", f"The predicted changes came true only roughly{hedge}."),
        Level.UNTRUE: Headline("bad", f"The predicted changes did not come true{hedge}."),
        Level.UNDEFINED: Headline("none", "Whether the predictions are true cannot be judged: nothing varies."),
    }[level]
