"""What the page shows of one test, or of all together: the parts of which the template makes sections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ifloo.report.agreements import Row, Statistics
from ifloo.report.extremes import SHOWN, Extremes
from ifloo.report.html.certificate import Entry, certificate
from ifloo.report.html.histogram import Histogram, histogram
from ifloo.report.html.judgement import Judgement, judged
from ifloo.report.html.samples import Album, Sample
from ifloo.report.pooled import Verdict
from ifloo.report.verdict import Comparison
from ifloo.store import StoredInfluences

ALL = "all"  # key of all tests together, where there are several


@dataclass(frozen=True)
class Removed:
    """What was predicted for a removal, and what happened, nats."""

    predicted: float
    actual: float


@dataclass(frozen=True)
class Card:
    """A training sample in the gallery: its score (nats per unit weight), and its refit where there is one."""

    sample: Sample
    score: float
    removed: Removed | None


@dataclass(frozen=True)
class View:
    """One test.

    Attributes:
        id: of the test.
        sample: it itself.
        outcome: what the model made of it.
        stored: its scores.
        one: its refits; None without.
        together: statistics of all of them; None without.
        judgement: of them.
        certificate: of its numbers.
        histogram: of its scores.
        helpful: training samples of most negative score.
        harmful: of most positive score.
    """

    id: int
    sample: Sample
    outcome: str
    stored: StoredInfluences
    one: Comparison | None
    together: Row | None
    judgement: Judgement | None
    certificate: Sequence[Entry]
    histogram: Histogram
    helpful: Sequence[Card]
    harmful: Sequence[Card]


@dataclass(frozen=True)
class Table:
    """Rows of statistics.

    Attributes:
        key: the view it belongs to: the id of a test, or `all`.
        title: what it is of.
        rows: label of each, and its statistics.
    """

    key: str
    title: str
    rows: Sequence[tuple[str, Row]]


def view(stored: StoredInfluences, one: Comparison | None, album: Album, outcome: str) -> View:
    """The view of one test; errors as those of `Album.of_training`."""
    most = Extremes.of(stored)
    together = None if one is None else one.statistics.row()
    return View(
        id=stored.test_id,
        sample=album.of_test(stored.test_id),
        outcome=outcome,
        stored=stored,
        one=one,
        together=together,
        judgement=None if together is None else judged(together.agreement),
        certificate=certificate(stored, one),
        histogram=histogram(stored, SHOWN if one is None else int(one.top.sum())),
        helpful=[_card(stored, one, album, at) for at in most.helpful],
        harmful=[_card(stored, one, album, at) for at in most.harmful],
    )


def _card(stored: StoredInfluences, one: Comparison | None, album: Album, at: int) -> Card:
    id_ = int(stored.train_ids[at])
    removed = None
    if one is not None and len(row := np.flatnonzero(one.ids == id_)):
        removed = Removed(float(one.predicted[row[0]]), float(one.actual[row[0]]))
    return Card(album.of_training(id_), float(stored.scores[at]), removed)


def by_key(verdict: Verdict) -> dict[str, Statistics]:
    """Statistics of each test by its id as text, those of all together first."""
    pooled = {ALL: verdict.together.statistics} if verdict.together else {}
    return pooled | {str(t): one.statistics for t, one in verdict.items()}


def groups_tables(verdict: Verdict) -> list[Table]:
    """Statistics of all refits, of the top-k and of the controls, for each view."""
    return [
        Table(key, _title(key), [(row.label, row) for row in found.scores]) for key, found in by_key(verdict).items()
    ]


def methods_tables(verdict: Verdict) -> list[Table]:
    """What further methods predicted for the same refits, the scores first; empty where there are none."""
    return [
        Table(key, _title(key), [(row.method_label, row) for row in found.by_method])
        for key, found in by_key(verdict).items()
        if found.further
    ]


def _title(key: str) -> str:
    return "all tests together" if key == ALL else f"test {key}"
