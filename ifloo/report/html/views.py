"""Views of the page: the data from which the template makes the sections of one test, or of all tests together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ifloo.agreement import Agreement
from ifloo.report.extremes import SHOWN, Extremes
from ifloo.report.html.certificate import Entry, certificate
from ifloo.report.html.found import ALL, Groups
from ifloo.report.html.histogram import Histogram, histogram
from ifloo.report.html.judgement import Judgement, judged
from ifloo.report.html.samples import Album, Sample
from ifloo.report.methods import SCORES
from ifloo.report.pooled import Pooled
from ifloo.report.verdict import Comparison
from ifloo.store import CORRECTED, StoredInfluences

_GROUPS = {"all": "all refits", "top_k": "top-k by |s|", "random": "random controls"}


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
        together: Statistics of all refits of the test.
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
    together: Agreement | None
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
        rows: Name and statistics of each row; the statistics are None if they are undefined.
    """

    key: str
    title: str
    rows: Sequence[tuple[str, Agreement | None]]


def view(
    stored: StoredInfluences, one: Comparison | None, together: Agreement | None, album: Album, outcome: str
) -> View:
    """Builds the view of one test; raises the same errors as `Album.of_training`."""
    most = Extremes.of(stored)
    return View(
        id=stored.test_id,
        sample=album.of_test(stored.test_id),
        outcome=outcome,
        stored=stored,
        one=one,
        together=together,
        judgement=None if one is None else judged(together),
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


def groups_tables(statistics: Mapping[str, Groups]) -> list[Table]:
    """Builds the tables of all refits, of the top-k and of the controls, one per view."""
    return [
        Table(key, _title(key), [(name, groups[group]) for group, name in _GROUPS.items()])
        for key, groups in statistics.items()
    ]


def methods_tables(
    compared: Mapping[int, Comparison], together: Pooled | None, statistics: Mapping[str, Groups]
) -> list[Table]:
    """Builds the tables of further methods on the same refits, preceded by the influence scores; empty without any."""
    further: dict[str, Mapping[str, Agreement | None]] = {ALL: together.methods} if together else {}
    further |= {str(t): {name: found["all"] for name, found in one.methods().items()} for t, one in compared.items()}
    return [
        Table(key, _title(key), [(label(name), one) for name, one in {SCORES: statistics[key]["all"], **found}.items()])
        for key, found in further.items()
        if found
    ]


def _title(key: str) -> str:
    return "all tests together" if key == ALL else f"test {key}"


def label(method: str) -> str:
    """Returns the name of a method for readers."""
    return "leverage counted in" if method == CORRECTED else method
