"""Texts of the TensorBoard report: a guide to its groups, the verdict as tables, the most influential samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ifloo.agreement import Interval
from ifloo.data.protocol import CaptionedSet, ConversationSet, SampleSets
from ifloo.report.figures.style import number, slope_form
from ifloo.report.safe_text import markdown, table
from ifloo.store import StoredInfluences
from ifloo.verdict import Comparison, Extremes, LabelErrors, Row, Statistics, Verdict
from ifloo.verdict.judgement import headline_of
from ifloo.verdict.label_errors import NAMES, PARTS
from ifloo.verdict.objective_record import ObjectiveRecord

LONGEST_TEXT = 300  # largest length of a question, an answer or a caption, characters


def guide(board: Mapping[str, str]) -> str:
    """Writes a table of the groups of tags and their contents."""
    rows = [[f"**{markdown(group, LONGEST_TEXT)}**", markdown(what, LONGEST_TEXT)] for group, what in board.items()]
    return table(["group", "what it shows"], rows)


def verdict(compared: Verdict) -> str:
    """Writes tables of predicted against actual change of the test losses, with 95 % intervals, and of certificates."""
    rows = [*_statistics("all", compared.over_all_tests.statistics)] if compared.over_all_tests else []
    rows += [row for t, one in compared.items() for row in _statistics(str(t), one.statistics)]
    removal = next(iter(compared.values())).removal
    head = ["test", "removed", "refits", "Pearson", "Spearman", "slope", "median relative error"]
    remarks = [f"Test {t}: {markdown(one.roughness, 2000)}" for t, one in compared.items() if one.roughness]
    return "\n\n".join(
        [
            f"**{headline_of(compared).text}**",
            f"Predicted against actual change of the test loss, removal {markdown(removal, LONGEST_TEXT)}, 95 % "
            "intervals.",
            table(head, rows),
            table(
                ["test", "residual of the solve", "error of a score at most", "worst ‖∇J‖", "noise floor", "flagged"],
                [_certificate(t, one) for t, one in compared.items()],
            ),
            *remarks,
        ]
    )


def objective(record: ObjectiveRecord) -> str:
    """Writes the outcome of the comparison of J with the training step, and its sentence."""
    outcome, text = (str(record.get(name, "")) for name in ("outcome", "text"))
    return f"**{markdown(outcome, LONGEST_TEXT)}**: {markdown(text, 2000)}"


def _statistics(test: str, statistics: Statistics) -> Iterator[list[str]]:
    """Yields a row of the table for each selection of refits that is not empty, and for each further method."""
    for row in (*statistics.scores, *statistics.other_methods):
        if row.n or row.selection == "all":
            yield [test, markdown(row.label, LONGEST_TEXT), *_cells(row)]


def _cells(row: Row) -> list[str]:
    if (found := row.agreement) is None:
        return [f"none: {row.reason}", "", "", "", ""]
    slope = slope_form(found.slope)
    return [
        str(found.n),
        _between(found.pearson, found.pearson_ci, ".4f"),
        _between(found.spearman, found.spearman_ci, ".4f"),
        _between(found.slope, found.slope_ci, slope),
        _between(found.median_rel_err, found.median_rel_err_ci, ".2%"),
    ]


def _between(value: float | None, interval: Interval | None, form: str) -> str:
    if value is None:
        return "none"
    text = number(value, form)
    return text if interval is None else f"{text} ({number(interval[0], form)} to {number(interval[1], form)})"


def _certificate(t: int, one: Comparison) -> list[str]:
    known = (one.stored.residual, one.stored.error_bound, one.worst_grad_norm, one.noise_floor)
    return [str(t), *("unknown" if x is None else f"{x:.1e}" for x in known), str(one.flagged)]


def mislabels(found: LabelErrors) -> str:
    """Writes a table of the number of wrong labels that each ranking finds, and of the number expected by chance."""
    counts = {**{NAMES[name]: f"{count}" for name, count in found.found.items()}, "by chance": f"{found.chance:.3g}"}
    return (
        f"{found.corrupted} training answers are wrong on purpose. Found among the first {found.rows_checked} rows of "
        f"each ranking (one in {PARTS}):\n\n" + table(["ranking", "found"], [list(row) for row in counts.items()])
    )


def samples(datamodule: SampleSets, stored: StoredInfluences, answered: str = "") -> str:
    """Writes tables of a test sample and its most influential training samples, all text escaped.

    Args:
        datamodule: Data module with `train_set` and `test_set`.
        stored: Scores on the test sample.
        answered: Outcome of the model on the test sample; empty if unknown.
    """
    words = _Words(datamodule.test_set)
    outcome = [] if not answered else [f"The model: {markdown(answered, LONGEST_TEXT)}"]
    parts = [table(["test", *words.head], [[str(stored.test_id), *words.of(stored.test_id)]]), *outcome]
    words = _Words(datamodule.train_set)
    most = Extremes.of(stored)
    for heading, at in (
        ("most helpful: without them the test loss rises", most.helpful),
        ("most harmful: without them the test loss falls", most.harmful),
    ):
        pairs = zip(stored.train_ids[at].tolist(), stored.scores[at].tolist(), strict=True)
        rows = [[str(i), number(score, "+.4g"), *words.of(i)] for i, score in pairs]
        if rows:
            parts += [f"**{heading}**", table(["id", "score", *words.head], rows)]
    return "\n\n".join(parts)


class _Words:
    """Text of a data set's samples as table cells: question and answer, or label."""

    def __init__(self, data: CaptionedSet | ConversationSet) -> None:
        self.data = data
        self.head = ["question", "answer"] if isinstance(data, ConversationSet) else ["label"]

    def of(self, id_: int) -> list[str]:
        data = self.data
        texts = [data.question(id_), data.answer(id_)] if isinstance(data, ConversationSet) else [data.caption(id_)]
        return [markdown(text, LONGEST_TEXT) for text in texts]
