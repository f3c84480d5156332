"""Statistics of predicted against actual changes, one row for each method and selection of refits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ifloo.agreement import Agreement, agreement
from ifloo.store import CORRECTED, JSON

MIN_REFITS = 3
"""Smallest number of refits for which statistics are computed."""

SCORES = "influence scores"
"""Name of the influence scores among the methods."""

Selection = Literal["all", "top_k", "random"]
Floats = NDArray[np.float64]
Chosen = NDArray[np.bool_]

_SELECTIONS: Mapping[Selection, str] = {"all": "all", "top_k": "top-k", "random": "random"}
_METHODS = {CORRECTED: "leverage-corrected"}


@dataclass(frozen=True)
class Row:
    """Predictions of one method against the refits of one selection.

    Attributes:
        method: Name of the method in files; `SCORES` for the influence scores.
        selection: Name of the selection in files: all refits, those of the top-k samples or of the random controls.
        n: Number of refits in the selection that have a prediction.
        agreement: Statistics of these refits; None if they are undefined.
        reason: Reason why the statistics are undefined; empty if they are defined.
    """

    method: str
    selection: Selection
    n: int
    agreement: Agreement | None
    reason: str

    @property
    def method_label(self) -> str:
        """Name of the method in all outputs."""
        return method_label(self.method)

    @property
    def label(self) -> str:
        """Name of the row in all outputs; rows of the influence scores are named by their selection alone."""
        selection = _SELECTIONS[self.selection]
        return selection if self.method == SCORES else f"{self.method_label}, {selection}"

    def to_json(self) -> dict[str, JSON] | None:
        """Returns the statistics in the form of verdict.json; None if they are undefined."""
        return None if self.agreement is None else dict(self.agreement.to_json())


@dataclass(frozen=True)
class Statistics:
    """Statistics of one test, or of all tests together.

    Attributes:
        rows: Rows of the influence scores (all refits, top-k, random controls), then those of other methods.
    """

    rows: tuple[Row, ...]

    def row(self, selection: Selection = "all", method: str = SCORES) -> Row:
        """Returns the row of one selection and method.

        Raises:
            KeyError: If no row has this selection and method.
        """
        for row in self.rows:
            if (row.selection, row.method) == (selection, method):
                return row
        raise KeyError((selection, method))

    @property
    def scores(self) -> list[Row]:
        """Rows of the influence scores, one for each selection."""
        return [row for row in self.rows if row.method == SCORES]

    @property
    def other_methods(self) -> list[Row]:
        """Rows of other methods over all refits."""
        return [row for row in self.rows if row.method != SCORES and row.selection == "all"]

    @property
    def by_method(self) -> list[Row]:
        """Rows over all refits: that of the influence scores, then those of other methods."""
        return [self.row(), *self.other_methods]


def method_label(method: str) -> str:
    """Returns the name of a method in all outputs."""
    return _METHODS.get(method, method)


def rows_of(
    method: str, predicted: Floats, actual: Floats, selections: Mapping[Selection, Chosen], noise_floor: float
) -> Iterator[Row]:
    """Yields the rows of one method, one for each selection.

    Args:
        method: Name of the method.
        predicted: Predicted changes, `[r]`, nats; NaN for refits without a prediction.
        actual: Actual changes, `[r]`, nats.
        selections: Mask of the refits in each selection, `[r]`, by its name.
        noise_floor: Size below which an actual change carries no information, nats.
    """
    for selection, chosen in selections.items():
        used = np.isfinite(predicted) & chosen
        x, y = predicted[used], actual[used]
        yield Row(method, selection, len(x), agreement_or_none(x, y, noise_floor), reason_for_none(x, y))


def agreement_or_none(predicted: Floats, actual: Floats, noise_floor: float = 0.0) -> Agreement | None:
    """Computes the statistics of predicted against actual changes, both `[r]`; None if `reason_for_none` applies."""
    return None if reason_for_none(predicted, actual) else agreement(predicted, actual, noise_floor=noise_floor)


def reason_for_none(predicted: Floats, actual: Floats) -> str:
    """Returns why changes (nats), both `[r]`, have no statistics; an empty text if they have."""
    n = len(predicted)
    if n < MIN_REFITS:
        return f"too few to compare: {n}, and a statistic needs {MIN_REFITS}" if n else "nothing to compare"
    if np.ptp(predicted) == 0:
        return "predicts the same change for all of them"
    if np.ptp(actual) == 0:
        return f"all actual changes are {actual[0]:.3g} nats"
    return ""
