"""Headline of the page: whether the predicted changes came true, in plain sentences, with the reasons for doubt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ifloo.agreement import Agreement
from ifloo.report.html.numbers import correlation, correlations, counted, interval, percent, ratio
from ifloo.store import CORRECTED, FLAG_RATIO
from ifloo.verdict import MIN_REFITS, Comparison, Row, Statistics, Verdict
from ifloo.verdict.judgement import FEW_REFITS, Level, headline_of, judge

_LEVELS = {
    Level.TRUE: "came true",
    Level.ORDER: "are right in order, but not in size",
    Level.ROUGH: "came true only roughly",
    Level.UNTRUE: "did not come true",
}


@dataclass(frozen=True)
class Answer:
    """Head of the page.

    Attributes:
        tone: `good`, `middling`, `bad` or `none`; determines the colour.
        headline: Verdict in one plain sentence.
        sentences: Evidence for the verdict.
        cautions: Reasons for doubt.
    """

    tone: str
    headline: str
    sentences: Sequence[str]
    cautions: Sequence[str] = ()


def answer(verdict: Verdict, unverified: Mapping[int, int]) -> Answer:
    """Composes the head of the page for all tests.

    Args:
        verdict: Verdict on the tests with refits.
        unverified: Number of refits of each test that has scores but too few refits for a comparison.
    """
    if verdict.statistics is None:
        return _unverified(unverified)
    found = headline_of(verdict)
    tone, headline = found.tone, found.text
    if unverified:
        headline = f"{headline} {_tests_are(len(unverified))} not verified yet."
    cautions = [caution for t, one in verdict.items() for caution in _cautions(t, one)]
    return Answer(
        tone, headline, _sentences(list(verdict.values()), verdict.statistics), [*cautions, *_missing(unverified)]
    )


def _sentences(tests: Sequence[Comparison], statistics: Statistics) -> list[str]:
    refits = sum(len(one.ids) for one in tests)
    named = f"test {tests[0].stored.test_id}" if len(tests) == 1 else f"{len(tests)} test samples"
    samples = len(np.unique(np.concatenate([one.ids for one in tests])))
    first = (
        f"{counted(samples, 'training sample')} out of {len(tests[0].stored.train_ids):,} were left out, one at a "
        f"time, and the model was trained again without each. The loss of {named} then changed as measured; the "
        f"influence scores had predicted by how much. That gives {counted(refits, 'comparison')}."
    )
    corrected = next((row.agreement for row in statistics.other_methods if row.method == CORRECTED), None)
    sentences = [first, _of_all(statistics.row()), _of_random(statistics.row("random")), _of_corrected(corrected)]
    return [sentence for sentence in sentences if sentence]


def _of_all(row: Row) -> str:
    if (found := row.agreement) is None:
        return f"No statistic can be given: {_because(row)}."
    size = f"An actual change is {ratio(found.slope)} times the predicted one {interval(found.slope_ci, ratio)}".strip()
    error = ""
    if found.median_rel_err is not None:
        error = f" Half of the predictions are within {percent(found.median_rel_err)} of the actual change."
    return (
        f"Predicted and actual changes have a Pearson correlation of {correlation(found.pearson)} "
        f"{correlations(found.pearson_ci)}".rstrip()
        + f" (1 is perfect). {size} (1 is exact).{error}"
    )


def _because(row: Row) -> str:
    """Returns why a row of the influence scores has no statistics, as part of a sentence that does not name them."""
    return f"the method {row.reason}" if row.reason.startswith("predicts") else row.reason


def _of_random(row: Row) -> str:
    if row.n < MIN_REFITS:
        return "Too few samples were drawn at random to tell how well the scores predict ordinary samples."
    if (found := row.agreement) is None:
        return f"Of the {counted(row.n, 'sample')} drawn at random no statistic can be given: {_because(row)}."
    pearson, slope = correlation(found.pearson), ratio(found.slope)
    return (
        f"For the {counted(found.n, 'removal')} drawn at random, which no choice of large scores can flatter: "
        f"Pearson {pearson} {correlations(found.pearson_ci)}".rstrip()
        + f", slope {slope} {interval(found.slope_ci, ratio)}".rstrip()
        + "."
    )


def _of_corrected(found: Agreement | None) -> str:
    if found is None:
        return ""
    return (
        f"Corrected for the leverage of each removed sample, they {_LEVELS[judge(found).level]}: Pearson "
        f"{correlation(found.pearson)}, slope {ratio(found.slope)} {interval(found.slope_ci, ratio)}".rstrip()
        + "."
    )


def _cautions(t: int, one: Comparison) -> list[str]:
    n, found, cautions = len(one.ids), one.agreement(), _of_controls(one.statistics)
    if one.roughness:
        cautions.append(one.roughness)
    if n < FEW_REFITS:
        cautions.append(
            f"only {counted(n, 'refit')}: take the statistics as a hint, and their intervals as too narrow."
        )
    if one.flagged:
        cautions.append(
            f"{one.flagged} of {counted(n, 'refit')} may be off by more than {percent(FLAG_RATIO)} of their change."
        )
    if one.flagged is None:
        cautions.append("the error of a single refit is unknown: there is no bound and no noise floor.")
    if found is not None and one.noise_floor is not None and found.n_rel_err < n:
        quiet = n - found.n_rel_err
        cautions.append(
            f"{quiet} of {counted(n, 'change')} are below the noise floor and carry no information by themselves."
        )
    if one.stored.damping and one.stored.undamped_residual:
        cautions.append(f"the scores are those of a system damped by {one.stored.damping:g}, not of the undamped loss.")
    return [f"Test {t}: {caution}" for caution in cautions]


def _of_controls(statistics: Statistics) -> list[str]:
    """Returns a caution if random controls reach another level: large scores alone can make a correlation high."""
    everything, random = judge(statistics.row().agreement).level, statistics.row("random").agreement
    if random is None or random.n < FEW_REFITS or (level := judge(random).level) is everything:
        return []
    pearson, slope = correlation(random.pearson), ratio(random.slope)
    return [
        f"by the {random.n} drawn at random alone the answer is “{level.value}” (Pearson {pearson}, slope {slope})."
    ]


def _tests_are(count: int) -> str:
    return "1 test is" if count == 1 else f"{count} tests are"


def _missing(unverified: Mapping[int, int]) -> list[str]:
    return [
        f"Test {t}: not verified, with {counted(refits, 'refit')} of it so far; “ifloo loo” for this test makes more."
        for t, refits in unverified.items()
    ]


def _unverified(unverified: Mapping[int, int]) -> Answer:
    tests = ", ".join(map(str, unverified))
    named = f"test {tests}" if len(unverified) == 1 else f"tests {tests}"
    done = sum(unverified.values())
    so_far = "no model has been trained again" if not done else f"there are only {counted(done, 'refit')}"
    return Answer(
        "none",
        "Nothing has been verified yet.",
        [
            f"This page shows the influence scores of {named}: which training samples are predicted to help or to "
            f"harm. Whether that is true is not known: {so_far} without these samples.",
            "The command “ifloo loo”, with the same settings, does that; “ifloo report” then writes the verdict here.",
        ],
    )
