"""Views of the page: data of the sections for one test, or for all tests together, in the form the template needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ifloo.report.html.certificate import Entry, certificate
from ifloo.report.html.histogram import Histogram, histogram
from ifloo.report.html.samples import Sample, SampleCache
from ifloo.store import StoredInfluences
from ifloo.verdict import Comparison, Extremes, Row, Statistics, Verdict
from ifloo.verdict.extremes import SHOWN
from ifloo.verdict.judgement import Judgement, judge
from ifloo.verdict.objective_record import ObjectiveRecord

ALL = "all"  # key of all tests together, used if there are several


@dataclass(frozen=True)
class Removed:
    """Change of the test loss on a removal.

    Attributes:
        predicted: Predicted change, nats.
        actual: Actual change after retraining, nats.
    """

    predicted: float
    actual: float


@dataclass(frozen=True)
class Card:
    """A training sample in the gallery.

    Attributes:
        sample: The sample.
        score: Score on the test loss, nats per unit weight.
        removed: Predicted and actual change on its removal; None if it was not removed.
    """

    sample: Sample
    score: float
    removed: Removed | None


@dataclass(frozen=True)
class View:
    """View of one test.

    Attributes:
        id: Id of the test sample.
        sample: The test sample.
        outcome: Outcome of the model on it.
        stored: Scores of the training samples.
        one: Comparison with refits; None if the test has no refits.
        together: Statistics of all refits of the test; None if it has no refits.
        judgement: Judgement of these statistics.
        certificate: Entries of the certificate.
        histogram: Histogram of the scores.
        helpful: Training samples of most negative score.
        harmful: Training samples of most positive score.
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
    """Table of statistics.

    Attributes:
        key: Key of the view it belongs to: the id of a test, or `all`.
        title: Title of the table.
        rows: Label and statistics of each row.
    """

    key: str
    title: str
    rows: Sequence[tuple[str, Row]]


def view(
    stored: StoredInfluences,
    one: Comparison | None,
    album: SampleCache,
    outcome: str,
    objective: ObjectiveRecord | None = None,
) -> View:
    """Builds the view of one test; raises the same errors as `SampleCache.of_training`."""
    most = Extremes.of(stored)
    together = None if one is None else one.statistics.row()
    return View(
        id=stored.test_id,
        sample=album.of_test(stored.test_id),
        outcome=outcome,
        stored=stored,
        one=one,
        together=together,
        judgement=None if together is None else judge(together.agreement),
        certificate=certificate(stored, one, objective),
        histogram=histogram(stored, SHOWN if one is None else int(one.top.sum())),
        helpful=[_card(stored, one, album, at) for at in most.helpful],
        harmful=[_card(stored, one, album, at) for at in most.harmful],
    )


def _card(stored: StoredInfluences, one: Comparison | None, album: SampleCache, at: int) -> Card:
    id_ = int(stored.train_ids[at])
    removed = None
    if one is not None and len(row := np.flatnonzero(one.ids == id_)):
        removed = Removed(float(one.predicted[row[0]]), float(one.actual[row[0]]))
    return Card(album.of_training(id_), float(stored.scores[at]), removed)


def by_key(verdict: Verdict) -> dict[str, Statistics]:
    """Returns the statistics by test id as text, preceded by those of all tests together."""
    pooled = {ALL: verdict.over_all_tests.statistics} if verdict.over_all_tests else {}
    return pooled | {str(t): one.statistics for t, one in verdict.items()}


def groups_tables(verdict: Verdict) -> list[Table]:
    """Builds the tables of all refits, of the top-k and of the controls, one per view."""
    return [
        Table(key, _title(key), [(row.label, row) for row in found.scores]) for key, found in by_key(verdict).items()
    ]


def methods_tables(verdict: Verdict) -> list[Table]:
    """Builds the tables of further methods on the same refits, preceded by the influence scores; empty without any."""
    return [
        Table(key, _title(key), [(row.method_label, row) for row in found.by_method])
        for key, found in by_key(verdict).items()
        if found.other_methods
    ]


def _title(key: str) -> str:
    return "all tests together" if key == ALL else f"test {key}"
