"""Refits at small weight steps: is training smooth enough for a derivative in a weight to predict a removal?"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ifloo.agreement import Agreement
from ifloo.store import JSON, NULL_ID, WEIGHTS, Layout, LossFile, StoredInfluences
from ifloo.verdict.agreements import agreement_or_none
from ifloo.verdict.predictions import positions

PEARSON, SLOPES = 0.98, (0.9, 1.1)  # least correlation, and range of slopes, at which small steps follow the scores
REMOVED_PEARSON, REMOVED_SLOPES = 0.95, (0.8, 1.25)  # the same for removals, which contain second-order effects
ADVICE = (
    "To make training smoother: a smaller learning rate, a larger epsilon of the optimizer, larger batches, more "
    "warm-up, a stronger penalty, fewer steps."
)


@dataclass(frozen=True)
class SmallSteps:
    """One test loss after refits with one sample at a weight near 1.

    Attributes:
        ids: Ids of the samples, `[k]`.
        scores: Scores of the samples, `[k]`, nats per unit weight.
        low: Test loss with the sample at the first of `WEIGHTS`, `[k]`, nats.
        high: Test loss with the sample at the second of `WEIGHTS`, `[k]`, nats.
        base: Test loss of the null refit, nats.
        noise_floor: Spread of the loss over null refits, nats; None with a single null refit.
    """

    ids: NDArray[np.int64]
    scores: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    base: float
    noise_floor: float | None

    @property
    def derivative(self) -> NDArray[np.float64]:
        """Measured ∂L_t/∂w_i, nats per unit weight: the central difference over both steps."""
        return (self.high - self.low) / (WEIGHTS[1] - WEIGHTS[0])

    def agreement(self) -> Agreement | None:
        """Returns the statistics of the scores against the measured derivative; None if too few rows vary."""
        return self._agreement

    def up_down_correlation(self) -> float | None:
        """Returns the Pearson correlation of the step up with the step down: 1 for a smooth loss, for any scores."""
        return None if self._up_against_down is None else self._up_against_down.pearson

    @cached_property
    def _agreement(self) -> Agreement | None:
        floor = (self.noise_floor or 0.0) / (WEIGHTS[1] - WEIGHTS[0])
        return agreement_or_none(self.scores, self.derivative, floor)

    @cached_property
    def _up_against_down(self) -> Agreement | None:
        return agreement_or_none(self.base - self.low, self.high - self.base)

    def second_order_gap(
        self, ids: NDArray[np.int64], predicted: NDArray[np.float64], actual: NDArray[np.float64]
    ) -> tuple[float | None, int]:
        """Measures the second-order part of removals: the median of |actual − predicted| / |predicted|.

        Args:
            ids: Ids of the removed samples, `[r]`; only those with small steps count.
            predicted: Predicted changes, `[r]`, nats.
            actual: Actual changes, `[r]`, nats.

        Returns:
            The median, None if it is undefined, and the number of removals in it.
        """
        chosen = np.isin(ids, self.ids) & (predicted != 0)
        gaps = np.abs(actual[chosen] - predicted[chosen]) / np.abs(predicted[chosen])
        return (float(np.median(gaps)) if len(gaps) else None), len(gaps)

    def to_json(
        self, ids: NDArray[np.int64], predicted: NDArray[np.float64], actual: NDArray[np.float64]
    ) -> dict[str, JSON]:
        """Returns the entry of verdict.json; the arguments are those of `second_order_gap`."""
        found, (gap, count) = self.agreement(), self.second_order_gap(ids, predicted, actual)
        return {
            **(found.to_json() if found else {"n_refits": len(self.ids)}),
            "weights": list(WEIGHTS),
            "sides": self.up_down_correlation(),
            "curvature": gap,
            "n_curvature": count,
        }

    def roughness(self, removals: Agreement | None, method: str) -> str | None:
        """Explains why scores, steps and removals disagree; None if they agree or one of them is undefined.

        Args:
            removals: Statistics of predicted against actual changes on removal.
            method: Name of the method of the scores.
        """
        steps, correlation = self.agreement(), self.up_down_correlation()
        if steps is None or removals is None or correlation is None:
            return None
        if _agrees(steps, PEARSON, SLOPES):
            removals_follow = _agrees(removals, REMOVED_PEARSON, REMOVED_SLOPES)
            return None if removals_follow else _explain_rough_removals(steps, removals)
        if correlation < PEARSON:
            return _explain_rough_training(steps, correlation)
        return _explain_wrong_scores(steps, correlation, method)


def small_steps(layout: Layout, stored: StoredInfluences, base: float, noise_floor: float | None) -> SmallSteps | None:
    """Reads the refits of a test at small weight steps; None if no sample has both steps.

    Args:
        layout: Paths of the files.
        stored: Scores of the test.
        base: Test loss after the null refit, nats.
        noise_floor: Noise floor of that loss, nats.

    Raises:
        InputError: If an id has no score, or a file is damaged.
    """
    low, high = (LossFile(layout.weight_losses(weight, stored.test_id)).rows() for weight in WEIGHTS)
    ids = np.array(sorted(i for i in low if i in high and i != NULL_ID), dtype=np.int64)
    if not len(ids):
        return None
    losses = [np.array([rows[i].loss for i in ids.tolist()]) for rows in (low, high)]
    scores = stored.scores[positions(stored, ids)].astype(np.float64)
    return SmallSteps(ids, scores, losses[0], losses[1], base, noise_floor)


def _agrees(found: Agreement, pearson: float, slopes: tuple[float, float]) -> bool:
    return found.pearson >= pearson and slopes[0] <= found.slope <= slopes[1]


def _text(found: Agreement) -> str:
    return f"Pearson {found.pearson:.3f}, slope {found.slope:.3g}, {found.n} refits"


def _explain_rough_removals(steps: Agreement, removals: Agreement) -> str:
    return (
        f"Small steps of a weight follow the scores ({_text(steps)}), removals do not ({_text(removals)}): from w = 1 "
        f"all the way to w = 0 this training run is too rough for any influence estimate to hold. {ADVICE}"
    )


def _explain_rough_training(steps: Agreement, correlation: float) -> str:
    return (
        f"Not even small steps of a weight follow the scores ({_text(steps)}), and a step up does not undo a step down "
        f"(Pearson {correlation:.3f}): this training run is too rough for any influence estimate to hold. {ADVICE}"
    )


def _explain_wrong_scores(steps: Agreement, correlation: float, method: str) -> str:
    return (
        f"Small steps of a weight do not follow the scores ({_text(steps)}), though a step up undoes a step down "
        f"(Pearson {correlation:.3f}): this training run is smooth, but the scores by {method} are not its derivative. "
        "Take another method (Unrolled follows the run itself, if `ifloo fit` recorded it), or a smaller damping."
    )
