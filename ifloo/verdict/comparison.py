"""The verdict: what was predicted, what happened, how well the two agree, and how far each number can be trusted."""

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
    JSON,
    NULL_ID,
    UNSURE,
    Layout,
    LossFile,
    LossRow,
    Manifest,
    StoredInfluences,
    influences,
    settings_stamp,
)
from ifloo.verdict.agreements import FEWEST, SCORES, Selection, Statistics, rows_of
from ifloo.verdict.base_model import difference
from ifloo.verdict.group_effects import GroupEffect, group_effects
from ifloo.verdict.predictions import predicted, predictions
from ifloo.verdict.small_steps import SmallSteps, small_steps

DEFINITIONS: dict[str, JSON] = {
    "predicted": "drop: -(s - mean s); zero_weight: -s; nats, s = dL_t/dw_i (see the npz files)",
    "actual": "L_t(refit without i) - L_t(null refit), nats",
    "slope": "least squares, actual = slope * predicted + intercept",
    "median_rel_err": "median of |predicted - actual| / |actual| over rows with |actual| above the noise floor",
    "methods": "the same statistics of what further methods predicted for the same refits; none where nothing varies",
    "ci": "95 % percentile bootstrap over removals, 2000 draws, seed 0",
    "noise_floor": "largest minus smallest L_t over the null refits, displaced ones included, nats",
    "worst_grad_norm": "largest |grad J| at the end of a refit",
    "worst_residual": "relative residual of the inverse-HVP on the full data",
    "small_steps": "statistics of (L_t(w_i = 1.1) - L_t(w_i = 0.9)) / 0.2 against s; sides: Pearson correlation of the "
    "step up with the step down; curvature: median of |actual - predicted| / |predicted| where these were removed",
    "seed_spread": "standard deviation of L_t over the null refit and fits from other seeds, nats",
    "groups": "predicted: the sum over the group of what is predicted for each sample; actual: one refit without all",
    "all_tests": "the same statistics over the rows of all tests together; noise floor: the largest of theirs",
}


@dataclass(frozen=True)
class Comparison:
    """Predicted and actual changes of one test loss, row by row.

    Attributes:
        stored: the scores behind the predictions.
        removal: what a refit left out.
        ids: `[r]` removed samples, in increasing order.
        predicted: `[r]`, nats.
        actual: `[r]`, nats.
        top: `[r]`, whether the sample is among this test's top-k.
        control: `[r]`, whether it was drawn at random.
        noise_floor: spread of null refits, nats; None with a single null refit.
        worst_grad_norm: over all refits.
        flagged: refits whose error, by its bound or where there is none by the noise floor, exceeds a twentieth of the
            change they measured; None where neither is known.
        further: `[r]`, nats, what further methods predicted, by name; NaN for rows without.
        steps: refits at small weight steps; None without any.
        groups: refits without several samples at once.
        seed_spread: standard deviation of the loss over fits from other seeds and the null refit, nats; None without.
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
    further: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    steps: SmallSteps | None = None
    groups: Sequence[GroupEffect] = ()
    seed_spread: float | None = None

    @property
    def kinds(self) -> list[str]:
        """Why each sample was removed: `top` of this test, `random`, or `other` (the top of another test)."""
        kinds: list[str] = np.where(self.top, "top", np.where(self.control, "random", "other")).tolist()
        return kinds

    @property
    def predictions(self) -> dict[str, NDArray[np.float64]]:
        """`[r]`, nats, what each method predicted, the influence scores first."""
        return {SCORES: self.predicted, **self.further}

    @property
    def selections(self) -> dict[Selection, NDArray[np.bool_]]:
        """`[r]`, the refits that statistics are given of, by name."""
        return {"all": np.ones(len(self.ids), dtype=bool), "top_k": self.top, "random": self.control}

    @cached_property
    def statistics(self) -> Statistics:
        """Statistics of the scores and of further methods; calculated once, since each costs its bootstrap."""
        floor = self.noise_floor or 0.0
        each = (rows_of(name, by, self.actual, self.selections, floor) for name, by in self.predictions.items())
        return Statistics(tuple(chain.from_iterable(each)))

    def agreement(self) -> Agreement | None:
        """Statistics of the scores over all refits; None where there are none."""
        return self.statistics.row().agreement

    @cached_property
    def roughness(self) -> str | None:
        """What small steps say of the training run where estimates and removals do not go together; else None."""
        return None if self.steps is None else self.steps.roughness(self.agreement(), self.stored.method)

    def to_json(self) -> dict[str, JSON]:
        """One entry of verdict.json."""
        return {
            "method": self.stored.method,
            "removal": self.removal,
            **self._of_method(SCORES),
            "methods": {name: self._of_method(name) for name in self.further},
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
        """The statistics of one method: over all refits, and over each other selection by its name."""
        together, *others = (self.statistics.row(selection, name) for selection in self.selections)
        return {
            **(together.to_json() or {"n_refits": len(self.ids)}),
            **{row.selection: row.to_json() for row in others},
        }

    def _context(self) -> dict[str, JSON]:
        """What refits of other kinds say; nothing where there are none."""
        found: dict[str, JSON] = {}
        if self.steps is not None:
            found["small_steps"] = self.steps.to_json(self.ids, self.predicted, self.actual)
            found["roughness"] = self.roughness
        if self.seed_spread is not None:
            found["seed_spread"] = self.seed_spread
        if self.groups:
            found["groups"] = [group.to_json() for group in self.groups]
        return found


def scores_of(layout: Layout, test_id: int) -> StoredInfluences:
    """The scores of one test.

    Raises:
        InputError: they are missing, or were made with other settings than the manifest says.
    """
    stored = influences.load(layout.scores(test_id))
    made_with = Manifest.at(layout.manifest).sections().get("influence", {}).get("compared", {})
    if stored.settings != settings_stamp(made_with):
        raise InputError(
            f"{layout.scores(test_id)} was made with other settings than {layout.manifest} says.\n"
            "  Run `ifloo influence` for this test again, with --overwrite."
        )
    return stored


def compare(layout: Layout, test_id: int, top_ids: Collection[int]) -> Comparison:
    """Puts the scores and the refits of one test side by side, by id, whatever the order in which refits finished.

    Raises:
        InputError: a file is missing, scores and refits are of different base models, or there are too few refits.
    """
    stored = scores_of(layout, test_id)
    removal, random_ids = _of_one_model(layout)
    rows = _in_order(LossFile(layout.loo_losses(test_id)))
    if NULL_ID not in rows or len(rows) - 1 < FEWEST:
        raise InputError(
            f"{layout.loo_losses(test_id)} holds {max(len(rows) - 1, 0)} refits; a verdict needs the null refit "
            f"(id -1) and at least {FEWEST} others.\n"
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
        further=predictions(layout, stored, ids, removal),
        steps=small_steps(layout, stored, null.loss, noise_floor),
        groups=group_effects(layout, stored, removal, null.loss),
        seed_spread=_deviation([null, *_in_order(LossFile(layout.seed_losses(test_id), "draw")).values()]),
    )


def _in_order(file: LossFile) -> dict[int, LossRow]:
    """The refits by id (or draw), in increasing order: a bootstrap draws positions, and a sum rounds in its order."""
    return dict(sorted(file.rows().items()))


def _flagged(rows: dict[int, LossRow], actual: NDArray[np.float64], noise_floor: float | None) -> int | None:
    refits = [row for i, row in rows.items() if i != NULL_ID]
    errors = [noise_floor if row.delta_error is None else row.delta_error for row in refits]
    if any(error is None for error in errors):
        return None
    flags: list[bool] = [
        e > UNSURE * abs(change) for e, change in zip(errors, actual.tolist(), strict=True) if e is not None
    ]
    return sum(flags)


def _spread(nulls: list[LossRow]) -> float | None:
    losses = [row.loss for row in nulls]
    return max(losses) - min(losses) if len(losses) > 1 else None


def _deviation(nulls: list[LossRow]) -> float | None:
    return float(np.std([row.loss for row in nulls], ddof=1)) if len(nulls) > 1 else None


def _of_one_model(layout: Layout) -> tuple[Removal, list[int]]:
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
