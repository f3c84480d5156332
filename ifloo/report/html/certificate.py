"""Certificate of each test as named entries: accuracy of the scores and of the refits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ifloo.report.html.numbers import compact, counted
from ifloo.solvers import Status, status_text
from ifloo.store import StoredInfluences
from ifloo.verdict import Comparison
from ifloo.verdict.objective_record import ObjectiveRecord


@dataclass(frozen=True)
class Entry:
    """One entry of a certificate.

    Attributes:
        name: Name of the number.
        value: Number as text.
        note: Meaning of the number.
    """

    name: str
    value: str
    note: str = ""


def certificate(stored: StoredInfluences, one: Comparison | None) -> list[Entry]:
    """Returns the entries of one test: those of the scores, then those of the refits if the test has any."""
    entries = [_solve(stored), _residual(stored)]
    if stored.damping:
        undamped = compact(stored.undamped_residual, ".2g")
        entries.append(Entry("undamped residual", undamped, "residual of the damped solution in the undamped system"))
    entries += [_bound(stored), _largest(stored)]
    if stored.repeat_error is not None:
        note = "standard error between repeats, relative to the solution"
        entries.append(Entry("spread of repeats", compact(stored.repeat_error, ".2g"), note))
    return entries if one is None else [*entries, *_of_refits(one)]


def objective(record: ObjectiveRecord | None) -> Entry | None:
    """Returns the entry on what was trained and what is scored; None for scores without such a comparison."""
    return None if record is None else Entry("objective", str(record.get("outcome")), str(record.get("text")))


def _solve(stored: StoredInfluences) -> Entry:
    solved = status_text(stored.status)
    return Entry("solve", f"{solved}, {counted(stored.steps, 'step')}" if stored.steps else solved)


def _residual(stored: StoredInfluences) -> Entry:
    if stored.status == Status.REPLAYED.name:
        note = "how close the replayed run came to the weights of the fit, relative to their size"
    else:
        note = "of the system solved, recomputed on all training data; 0 is exact"
    value = "nothing was solved" if stored.residual is None else compact(stored.residual, ".2g")
    damped = f" (damped by {stored.damping:g})" if stored.damping else ""
    return Entry("residual", value + damped, note)


def _bound(stored: StoredInfluences) -> Entry:
    bound = "no bound known" if stored.error_bound is None else f"≤ {compact(stored.error_bound, '.2g')}"
    return Entry("error of a score", bound, "nats per unit weight, to be compared with the largest score")


def _largest(stored: StoredInfluences) -> Entry:
    return Entry("largest score", compact(float(np.abs(stored.scores).max(initial=0.0))), "by absolute value")


def _of_refits(one: Comparison) -> list[Entry]:
    n = len(one.ids)
    flagged = "unknown" if one.flagged is None else f"{one.flagged} of {n:,}"
    entries = [
        Entry("gradient after refits", compact(one.worst_grad_norm, ".2g"), "largest ‖∇J‖ at the end of a refit"),
        Entry(
            "noise floor",
            "unknown" if one.noise_floor is None else compact(one.noise_floor, ".2g"),
            "nats by which refits with nothing removed differ",
        ),
        Entry("refits flagged", flagged, "error above a twentieth of the change they measured"),
    ]
    if one.seed_spread is not None:
        note = "nats by which another seed changes this loss"
        entries.append(Entry("spread of seeds", compact(one.seed_spread, ".2g"), note))
    return entries


def columns(certificates: Sequence[Sequence[Entry]]) -> list[Entry]:
    """Returns one entry per name over all tests, in order: the header of a table."""
    return list({entry.name: entry for entries in reversed(certificates) for entry in entries}.values())
