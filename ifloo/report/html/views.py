"""What the page shows of one test, or of all together: the parts of which the template makes sections."""

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
        together: statistics of all of them.
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
    together: Agreement | None
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
        rows: name, how many refits, statistics; None where nothing varies.
    """

    key: str
    title: str
    rows: Sequence[tuple[str, Agreement | None]]


def view(
    stored: StoredInfluences, one: Comparison | None, together: Agreement | None, album: Album, outcome: str
) -> View:
    """The view of one test; errors as those of `Album.of_training`."""
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
    """Statistics of all refits, of the top-k and of the controls, for each view."""
    return [
        Table(key, _title(key), [(name, groups[group]) for group, name in _GROUPS.items()])
        for key, groups in statistics.items()
    ]


def methods_tables(
    compared: Mapping[int, Comparison], together: Pooled | None, statistics: Mapping[str, Groups]
) -> list[Table]:
    """What further methods predicted for the same refits, ours first; empty where there are none."""
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
    """The name of a method as people read it."""
    return "leverage counted in" if method == CORRECTED else method
