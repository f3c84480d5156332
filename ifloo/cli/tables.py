"""Tables that the commands print, in columns of a terminal: a Chinese character takes two."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ifloo.agreement import Agreement
from ifloo.data.protocol import AttributionData, ConversationSet
from ifloo.minimize import FitEnd
from ifloo.report.figures.style import slope_form
from ifloo.solvers import Status, status_text
from ifloo.store import CORRECTED, StoredInfluences
from ifloo.verdict import Comparison, LabelErrors, Verdict
from ifloo.verdict.agreements import SCORES, Row, Statistics
from ifloo.verdict.group_effects import GroupEffect
from ifloo.verdict.judgement import headline_of, judge
from ifloo.verdict.label_errors import NAMES
from ifloo.verdict.small_steps import WEIGHTS, SmallSteps

ELLIPSIS = "…"
ROWS = 8
_CAPTION = 27  # columns of a caption: two captions and their scores fit into a hundred
_LINE = 118  # columns of a paragraph
_NAMES = 16  # smallest width of the column of names


def fitted(minimum: FitEnd, metrics: Sequence[Mapping[str, float]], checkpoint: Path | None) -> None:
    """Prints J, ‖∇J‖ and the metrics of the test data."""
    measured = "  ".join(f"{name} = {value:.4f}" for one in metrics for name, value in one.items())
    print(f"fit: J = {minimum.value:.14f} nats  |grad J| = {minimum.grad_norm:.1e}  {measured}")
    if checkpoint:
        print(f"checkpoint: {checkpoint}")


def exact_match(right: Mapping[str, Mapping[str, float | int]]) -> None:
    """Prints the share of test answers that are right to the last token, by question."""
    if right:
        print("exact match of the test answers, by question")
    for question, found in right.items():
        print(f"  {found['share']:.2f}{found['rows']:>6} rows  {question}")


def influence(stored: StoredInfluences, data: AttributionData) -> None:
    """Prints the most helpful and harmful training samples of one test, and the certificate of the scores."""
    t, train, test = stored.test_id, data.train_set, data.test_set
    label = "row" if isinstance(test, ConversationSet) else "label"
    order = np.argsort(stored.scores, kind="stable")
    pairs = list(zip(order[:ROWS].tolist(), order[::-1][:ROWS].tolist(), strict=True))
    ids = {position: int(stored.train_ids[position]) for pair in pairs for position in pair}
    captions = {position: cut(train.caption(i), _CAPTION) for position, i in ids.items()}
    column = max(6, *(width(caption) + 2 for caption in captions.values()))
    score = 18 if column == 6 else 13
    print(f"\ntest {t} ({label} {test.caption(t)}): influence in nats per unit weight")
    print("  " + "".join(f"{name:<{column + score + 8}}" for name in ("most helpful", "most harmful")))
    print("  " + 2 * f"{'id':>6}  {label:<{column}}{'score':<{score}}")
    for pair in pairs:
        cells = [f"{ids[at]:>6}  {padded(captions[at], column)}{stored.scores[at]:<+{score}.4e}" for at in pair]
        print("  " + "".join(cells))
    print(f"  certificate: {_solved(stored)}")


def _solved(stored: StoredInfluences) -> str:
    """Describes the solve behind the scores and its error."""
    if stored.status == Status.REPLAYED.name:
        return f"{_residual(stored)} ({stored.steps} steps)"
    return f"{status_text(stored.status)} after {stored.steps} steps, {_residual(stored)}"


def _residual(stored: StoredInfluences) -> str:
    """Describes the error of the solve, of the damped and of the undamped system."""
    if stored.residual is None:
        return "no solve, no residual"
    if stored.status == Status.REPLAYED.name:
        return f"replayed the recorded run, its weights met within {stored.residual:.1e} of their size"
    bound = "of unknown error" if stored.error_bound is None else f"within {stored.error_bound:.1e}"
    if not stored.damping:
        return f"residual {stored.residual:.1e}, scores {bound}"
    undamped = stored.undamped_residual
    rest = "" if undamped is None else f", {undamped:.1e} of the undamped one"
    solved = f"residual {stored.residual:.1e} of the system damped by {stored.damping:g}{rest}"
    return f"{solved}; scores {bound} of the damped solution"


def verdict(found: Verdict) -> None:
    """Prints predicted against actual changes of each test loss and of all together, and the wrong labels found."""
    for t, one in found.items():
        print(f"\ntest {t}: predicted against actual change of its loss, removal {one.removal}")
        _one_test(one)
    if found.over_all_tests:
        print(f"\nall {len(found)} tests together")
        _statistics(found.over_all_tests.statistics)
    if found.mislabels:
        _mislabels(found.mislabels)


def headline(found: Verdict) -> None:
    """Prints in plain words whether the predicted changes came true, with the numbers of all refits."""
    if found.statistics is None:
        return
    row, numbers = found.statistics.row(), ""
    if row.agreement is not None:
        numbers = f" All {row.n:,} refits: Pearson {row.agreement.pearson:.3f}, slope {row.agreement.slope:.3f}"
        numbers += " (1 is exact)."
    print(f"\n{headline_of(found).text}{numbers}")
    if len(found) > 1:
        for t, one in found.items():
            print(f"  test {t}: {judge(one.agreement())}")


def _one_test(one: Comparison) -> None:
    """Prints the table of one test: scores, further methods, small steps and groups."""
    columns = _statistics(one.statistics)
    if one.steps is not None:
        _small_steps(one, one.steps, columns)
    print(f"  certificate: {_certificate(one)}")
    if one.groups:
        _groups(one.groups)
    if one.roughness:
        print(textwrap.fill(one.roughness, _LINE, initial_indent="  ", subsequent_indent="  "))


def _statistics(statistics: Statistics) -> int:
    """Prints a line for each row whose selection is not empty; returns the width of the column of names."""
    shown = [row for row in statistics.rows if row.n or row.selection == "all"]
    own = {row.label: row for row in shown if row.method in (SCORES, CORRECTED)}
    others = {row.method_label: row for row in statistics.other_methods if row.method != CORRECTED}
    columns = max(_NAMES, *map(len, (*own, *others)))
    print(f"  {'refits':<{columns}}{'n':>4}  {'Pearson':<29}{'Spearman':<29}{'slope':<29}median rel. error")
    for name, row in own.items():
        print(f"  {name:<{columns}}{_cells(row)}")
    if others:
        print("  all of these refits, predicted by further methods")
    for name, row in others.items():
        print(f"  {name:<{columns}}{_cells(row)}")
    return columns


def _cells(row: Row) -> str:
    return f"{row.n:>4}  {_row(row.agreement)}" if row.agreement else f"{'-':>4}  {row.reason}"


def _small_steps(one: Comparison, steps: SmallSteps, columns: int) -> None:
    """Prints scores against the measured derivative, and how far a whole removal departs from it."""
    low, high = WEIGHTS
    print(f"  refits of one sample at weight {low} and {high}: measured derivative against the scores")
    if (found := steps.agreement()) is None:
        print(f"  {'small steps':<{columns}}{len(steps.ids):>4}  too few, or nothing varies")
        return
    print(f"  {'small steps':<{columns}}{found.n:>4}  {_row(found)}")
    curvature, count = steps.second_order_gap(one.ids, one.predicted, one.actual)
    if curvature is not None:
        print(
            f"  removed altogether (weight 0) they differ from their prediction by {curvature:.1%} (median of {count})"
        )


def _groups(groups: Sequence[GroupEffect]) -> None:
    columns = max(_NAMES, *(len(group.id) + 2 for group in groups))
    print(f"  {'removed at once':<{columns}}{'n':>4}  {'predicted':<14}{'actual':<14}nats")
    for group in groups:
        print(f"  {group.id:<{columns}}{group.n:>4}  {group.predicted:<+14.4e}{group.actual:<+14.4e}".rstrip())


def _mislabels(found: LabelErrors) -> None:
    """Prints a line for each ranking, plain loss last."""
    wrong, rows = found.corrupted, found.rows_checked
    print(f"\n{wrong} training answers are wrong on purpose; among the {rows} rows (10 %) of largest")
    for name, count in found.found.items():
        print(f"  {NAMES[name]:<28} are {count} of them (chance: {found.chance:.3g})")
    if found.residual is not None:
        print(f"  certificate: worst residual of the solves behind self-influence {found.residual:.1e}")


def _certificate(one: Comparison) -> str:
    floor = "unknown (one null refit)" if one.noise_floor is None else f"{one.noise_floor:.1e} nats"
    worst = "unknown" if one.worst_grad_norm is None else f"{one.worst_grad_norm:.1e}"
    flagged = "unknown how many" if one.flagged is None else one.flagged
    if one.seed_spread is not None:
        floor += f" (another seed changes this loss by about {one.seed_spread:.1e})"
    return f"{_residual(one.stored)}; worst |grad J| of a refit {worst}, noise floor {floor}, {flagged} refits flagged"


def _row(found: Agreement) -> str:
    slope = slope_form(found.slope)
    cells = [
        _with_interval(found.pearson, found.pearson_ci, ".5f"),
        _with_interval(found.spearman, found.spearman_ci, ".4f"),
        _with_interval(found.slope, found.slope_ci, slope),
        _with_interval(found.median_rel_err, found.median_rel_err_ci, ".2%"),
    ]
    return "  ".join(f"{cell:<27}" for cell in cells).rstrip()


def _with_interval(value: float | None, interval: tuple[float, float] | None, form: str) -> str:
    if value is None:
        return "-"
    if interval is None:
        return f"{value:{form}}"
    return f"{value:{form}} [{interval[0]:{form}}, {interval[1]:{form}}]"


def width(text: str) -> int:
    """Counts the columns that a text takes."""
    return sum(_width(character) for character in text)


def padded(text: str, columns: int) -> str:
    """Fills a text with spaces up to a number of columns."""
    return text + " " * (columns - width(text))


def cut(text: str, columns: int) -> str:
    """Cuts the middle out of a text that is too wide: its end, such as an answer, matters as much as its beginning."""
    if width(text) <= columns:
        return text
    room = columns - 1
    head = _fitting(text, room - room // 2)
    tail = _fitting(text[::-1], room - width(head))[::-1]
    return f"{head.rstrip()}{ELLIPSIS}{tail.lstrip()}"


def _fitting(text: str, columns: int) -> str:
    """Returns the longest beginning of a text that fits."""
    taken = 0
    for at, character in enumerate(text):
        taken += _width(character)
        if taken > columns:
            return text[:at]
    return text


def _width(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
