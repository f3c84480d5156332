"""Comparison of predicted and actual changes of one test loss, and the files that it is read from."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from ifloo.agreement import Agreement
from ifloo.errors import InputError
from ifloo.objective import Removal
from ifloo.store import (
    FLAG_RATIO,
    JSON,
    NULL_ID,
    Layout,
    LossFile,
    LossRow,
    Manifest,
    StoredInfluences,
    influences,
    settings_stamp,
)
from ifloo.verdict.agreements import MIN_REFITS, SCORES, Selection, Statistics, rows_of
from ifloo.verdict.base_model import difference
from ifloo.verdict.group_effects import GroupEffect, group_effects
from ifloo.verdict.predictions import predicted, predictions
from ifloo.verdict.small_steps import SmallSteps, small_steps


@dataclass(frozen=True)
class Comparison:
    """Predicted and actual changes of one test loss, one row per refit.

    Attributes:
        stored: Scores from which the predictions are computed.
        removal: Meaning of a removal in the refits.
        ids: Ids of the removed samples, `[r]`, in increasing order.
        predicted: Predicted changes, `[r]`, nats.
        actual: Actual changes, `[r]`, nats.
        top: Mask of the samples among this test's top-k, `[r]`.
        control: Mask of the samples drawn at random, `[r]`.
        noise_floor: Spread of the loss over null refits, nats; None with a single null refit.
        worst_grad_norm: Largest ‖∇J‖ at the end of a refit; None if no refit recorded it.
        flagged: Number of refits whose error exceeds a twentieth of the change they measured. The error is the bound of
            the refit, else the noise floor; None if a refit has neither.
        other_methods: Predicted changes by other methods, `[r]` each, nats, by method name; NaN for rows without one.
        steps: Refits at weights near 1; None if there are none.
        groups: Refits without several samples at once.
        seed_spread: Standard deviation of the loss over the null refit and fits from other seeds, nats; None if there
            are no such fits.
    """

    stored: StoredInfluences
    removal: Removal
    ids: NDArray[np.int64]
    predicted: NDArray[np.float64]
    actual: NDArray[np.float64]
    top: NDArray[np.bool_]
    control: NDArray[np.bool_]
    noise_floor: float | None
    worst_grad_norm: float | None
    flagged: int | None
    other_methods: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    steps: SmallSteps | None = None
    groups: Sequence[GroupEffect] = ()
    seed_spread: float | None = None

    @property
    def kinds(self) -> list[str]:
        """Reason of each removal: `top` of this test, `random`, or `other` (the top of another test)."""
        kinds: list[str] = np.where(self.top, "top", np.where(self.control, "random", "other")).tolist()
        return kinds

    @property
    def predictions(self) -> dict[str, NDArray[np.float64]]:
        """Predicted changes by each method, `[r]`, nats; the influence scores come first."""
        return {SCORES: self.predicted, **self.other_methods}

    @property
    def selections(self) -> dict[Selection, NDArray[np.bool_]]:
        """Masks of the refits over which statistics are computed, `[r]`, by name."""
        return {"all": np.ones(len(self.ids), dtype=bool), "top_k": self.top, "random": self.control}

    @cached_property
    def statistics(self) -> Statistics:
        """Statistics of the scores and of other methods; computed once, since each takes a bootstrap."""
        floor = self.noise_floor or 0.0
        rows = (rows_of(name, by, self.actual, self.selections, floor) for name, by in self.predictions.items())
        return Statistics(tuple(chain.from_iterable(rows)))

    def agreement(self) -> Agreement | None:
        """Returns the statistics of the scores over all refits; None if they are undefined."""
        return self.statistics.row().agreement

    @cached_property
    def roughness(self) -> str | None:
        """Diagnosis of the training run by small steps if scores, steps and removals disagree; else None."""
        return None if self.steps is None else self.steps.roughness(self.agreement(), self.stored.method)

    def to_json(self) -> dict[str, JSON]:
        """Returns the entry of this test in verdict.json."""
        return {
            "method": self.stored.method,
            "removal": self.removal,
            **self._of_method(SCORES),
            "methods": {name: self._of_method(name) for name in self.other_methods},
            "worst_residual": self.stored.residual,
            "undamped_residual": self.stored.undamped_residual,
            "damping": self.stored.damping,
            "score_error_bound": self.stored.error_bound,
            "worst_grad_norm": self.worst_grad_norm,
            "noise_floor": self.noise_floor,
            "flagged": self.flagged,
            **self._context(),
        }

    def _of_method(self, name: str) -> dict[str, JSON]:
        """Returns the statistics of one method: over all refits, and over each other selection by its name."""
        all_refits, *others = (self.statistics.row(selection, name) for selection in self.selections)
        return {
            **(all_refits.to_json() or {"n_refits": len(self.ids)}),
            **{row.selection: row.to_json() for row in others},
        }

    def _context(self) -> dict[str, JSON]:
        """Returns the entries for refits of other kinds; empty if there are none."""
        entries: dict[str, JSON] = {}
        if self.steps is not None:
            entries["small_steps"] = self.steps.to_json(self.ids, self.predicted, self.actual)
            entries["roughness"] = self.roughness
        if self.seed_spread is not None:
            entries["seed_spread"] = self.seed_spread
        if self.groups:
            entries["groups"] = [group.to_json() for group in self.groups]
        return entries


def scores_of(layout: Layout, test_id: int) -> StoredInfluences:
    """Reads the scores of one test.

    Raises:
        InputError: If the scores are missing, or were made with other settings than those in the manifest.
    """
    stored = influences.load(layout.scores(test_id))
    compared = Manifest.at(layout.manifest).sections().get("influence", {}).get("compared", {})
    if stored.settings != settings_stamp(compared):
        raise InputError(
            f"{layout.scores(test_id)} was made with other settings than {layout.manifest} says.\n"
            "  Run `ifloo influence` for this test again, with --overwrite."
        )
    return stored


def compare(layout: Layout, test_id: int, top_ids: Collection[int]) -> Comparison:
    """Compares the scores of one test with its refits; the order in which refits finished has no effect.

    Args:
        layout: Paths of the files.
        test_id: Id of the test sample.
        top_ids: Ids of its top-k training samples.

    Raises:
        InputError: If a file is missing, scores and refits belong to different base models, or there are too few
            refits.
    """
    stored = scores_of(layout, test_id)
    removal, random_ids = _refit_settings(layout)
    rows = _in_order(LossFile(layout.loo_losses(test_id)))
    if NULL_ID not in rows or len(rows) - 1 < MIN_REFITS:
        raise InputError(
            f"{layout.loo_losses(test_id)} holds {max(len(rows) - 1, 0)} refits; a verdict needs the null refit "
            f"(id -1) and at least {MIN_REFITS} others.\n"
            "  Run `ifloo loo` (to its end), with more --refit.top_k or --refit.random."
        )
    ids = np.array([i for i in rows if i != NULL_ID], dtype=np.int64)
    actual = np.array([rows[int(i)].loss - rows[NULL_ID].loss for i in ids])
    null = rows[NULL_ID]
    nulls = [null, *_in_order(LossFile(layout.null_losses(test_id), "draw")).values()]
    noise_floor = _spread(nulls)
    return Comparison(
        stored=stored,
        removal=removal,
        ids=ids,
        predicted=predicted(stored, ids, removal),
        actual=actual,
        top=np.isin(ids, list(top_ids)),
        control=np.array([i in random_ids or bool(rows[int(i)].extra.get("control")) for i in ids.tolist()]),
        noise_floor=noise_floor,
        worst_grad_norm=max((r.grad_norm for r in rows.values() if r.grad_norm is not None), default=None),
        flagged=_flagged(rows, actual, noise_floor),
        other_methods=predictions(layout, stored, ids, removal),
        steps=small_steps(layout, stored, null.loss, noise_floor),
        groups=group_effects(layout, stored, removal, null.loss),
        seed_spread=_deviation([null, *_in_order(LossFile(layout.seed_losses(test_id), "draw")).values()]),
    )


def _in_order(file: LossFile) -> dict[int, LossRow]:
    """Reads refits by increasing id (or draw), since bootstrap and rounding of sums depend on the order."""
    return dict(sorted(file.rows().items()))


def _flagged(rows: dict[int, LossRow], actual: NDArray[np.float64], noise_floor: float | None) -> int | None:
    refits = [row for i, row in rows.items() if i != NULL_ID]
    errors = [noise_floor if row.delta_error is None else row.delta_error for row in refits]
    if any(error is None for error in errors):
        return None
    flags: list[bool] = [
        e > FLAG_RATIO * abs(change) for e, change in zip(errors, actual.tolist(), strict=True) if e is not None
    ]
    return sum(flags)


def _spread(nulls: list[LossRow]) -> float | None:
    losses = [row.loss for row in nulls]
    return max(losses) - min(losses) if len(losses) > 1 else None


def _deviation(nulls: list[LossRow]) -> float | None:
    return float(np.std([row.loss for row in nulls], ddof=1)) if len(nulls) > 1 else None


def _refit_settings(layout: Layout) -> tuple[Removal, list[int]]:
    """Returns the removal and the ids of the random controls.

    Raises:
        InputError: If a section is missing, or scores and refits belong to different base models.
    """
    sections = Manifest.at(layout.manifest).sections()
    for name in ("influence", "loo"):
        if name not in sections:
            raise InputError(f"{layout.manifest} has no section {name!r}. Run `ifloo {name}` before the report.")
    scores, refits = sections["influence"]["compared"], sections["loo"]["compared"]
    if found := difference(scores, refits):
        name, of_scores, of_refits = found
        raise InputError(
            f"{layout.root}: scores and refits are of different base models ({name}: {of_scores} and "
            f"{of_refits}).\n  Run `ifloo influence` and `ifloo loo` on one checkpoint."
        )
    return refits["removal"], list(sections["loo"]["recorded"].get("random_ids", []))
