"""The verdict: what was predicted, what happened, how well the two agree, and how far each number can be trusted."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ifloo.agreement import Agreement, agreement
from ifloo.attribution import predicted_change
from ifloo.errors import InputError
from ifloo.objective import Removal
from ifloo.store import (
    CORRECTED,
    JSON,
    NULL_ID,
    UNSURE,
    Layout,
    LossFile,
    LossRow,
    Manifest,
    StoredInfluences,
    influences,
    removals,
    settings_stamp,
)

DEFINITIONS: dict[str, JSON] = {
    "predicted": "drop: -(s - mean s); zero_weight: -s; nats, s = dL_t/dw_i (see the npz files)",
    "actual": "L_t(refit without i) - L_t(null refit), nats",
    "slope": "least squares, actual = slope * predicted + intercept",
    "median_rel_err": "median of |predicted - actual| / |actual| over rows with |actual| above the noise floor",
    "ci": "95 % percentile bootstrap over removals, 2000 draws, seed 0",
    "noise_floor": "largest minus smallest L_t over the null refits, displaced ones included, nats",
    "worst_grad_norm": "largest |grad J| at the end of a refit",
    "worst_residual": "relative residual of the inverse-HVP on the full data",
}
log = logging.getLogger(__name__)
FEWEST = 3  # rows below which a group has no statistics


@dataclass(frozen=True)
class Comparison:
    """Predicted and actual changes of one test loss, row by row.

    Attributes:
        stored: the scores behind the predictions.
        removal: what a refit left out.
        ids: `[r]` removed samples.
        predicted: `[r]`, nats.
        actual: `[r]`, nats.
        top: `[r]`, whether the sample is among this test's top-k.
        control: `[r]`, whether it was drawn at random.
        noise_floor: spread of null refits, nats; None with a single null refit.
        worst_grad_norm: over all refits.
        flagged: refits whose error, by its bound or where there is none by the noise floor, exceeds a twentieth of the
            change they measured; None where neither is known.
        corrected: `[r]`, nats, predicted with the leverage of the sample counted in; NaN for rows without; None: none.
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
    corrected: NDArray[np.float64] | None = None

    @property
    def kinds(self) -> list[str]:
        """Why each sample was removed: `top` of this test, `random`, or `other` (the top of another test)."""
        return np.where(self.top, "top", np.where(self.control, "random", "other")).tolist()

    def agreement(
        self, chosen: NDArray[np.bool_] | None = None, predicted: NDArray[np.float64] | None = None
    ) -> Agreement | None:
        """Statistics of all rows, or of some; of the scores, or of another prediction (NaN: none for that row).

        None where there are fewer than three.
        """
        by = self.predicted if predicted is None else predicted
        rows = np.isfinite(by) & (True if chosen is None else chosen)
        if rows.sum() < FEWEST:
            return None
        return agreement(by[rows], self.actual[rows], noise_floor=self.noise_floor or 0.0)

    def methods(self) -> dict[str, dict[str, Agreement | None]]:
        """Statistics of further predictions, by name: of all rows, of the top-k and of the controls."""
        if self.corrected is None:
            return {}
        groups = {"all": None, "top_k": self.top, "random": self.control}
        return {CORRECTED: {name: self.agreement(rows, self.corrected) for name, rows in groups.items()}}

    def to_json(self) -> dict[str, JSON]:
        """One entry of verdict.json."""
        together = self.agreement()
        groups = {"top_k": self.agreement(self.top), "random": self.agreement(self.control)}
        return {
            "method": self.stored.method,
            "removal": self.removal,
            **(together.to_json() if together else {"n_refits": len(self.ids)}),
            **{name: found.to_json() if found else None for name, found in groups.items()},
            "methods": {name: _to_json(groups) for name, groups in self.methods().items()},
            "worst_residual": self.stored.residual,
            "undamped_residual": self.stored.undamped_residual,
            "damping": self.stored.damping,
            "score_error_bound": self.stored.error_bound,
            "worst_grad_norm": self.worst_grad_norm,
            "noise_floor": self.noise_floor,
            "flagged": self.flagged,
        }


def _to_json(groups: dict[str, Agreement | None]) -> dict[str, JSON]:
    together = groups["all"]
    rest = {name: found.to_json() if found else None for name, found in groups.items() if name != "all"}
    return {**(together.to_json() if together else {}), **rest}


def compare(layout: Layout, test_id: int, top_ids: Collection[int]) -> Comparison:
    """Puts the scores and the refits of one test side by side.

    Raises:
        InputError: a file is missing, scores and refits are of different base models, or there are too few refits.
    """
    stored = influences.load(layout.scores(test_id))
    if stored.settings != settings_stamp(
        Manifest.at(layout.manifest).sections().get("influence", {}).get("compared", {})
    ):
        raise InputError(
            f"{layout.scores(test_id)} was made with other settings than {layout.manifest} says.\n"
            "  Run `ifloo influence` for this test again, with --overwrite."
        )
    removal, random_ids = _of_one_model(layout)
    rows = LossFile(layout.loo_losses(test_id)).rows()
    if NULL_ID not in rows or len(rows) - 1 < FEWEST:
        raise InputError(
            f"{layout.loo_losses(test_id)} holds {max(len(rows) - 1, 0)} refits; a verdict needs the null refit "
            f"(id -1) and at least {FEWEST} others.\n"
            "  Run `ifloo loo` (to its end), with more --refit.top_k or --refit.random."
        )
    ids = np.array([i for i in rows if i != NULL_ID], dtype=np.int64)
    actual = np.array([rows[int(i)].loss - rows[NULL_ID].loss for i in ids])
    scores = stored.scores[_positions(stored, ids)].astype(np.float64)
    nulls = [rows[NULL_ID], *LossFile(layout.null_losses(test_id), "draw").rows().values()]
    noise_floor = _spread(nulls)
    return Comparison(
        stored=stored,
        removal=removal,
        ids=ids,
        predicted=np.asarray(predicted_change(scores, stored.score_mean, removal)),  # type: ignore[arg-type]
        actual=actual,
        top=np.isin(ids, list(top_ids)),
        control=np.array([i in random_ids or bool(rows[int(i)].extra.get("control")) for i in ids.tolist()]),
        noise_floor=noise_floor,
        worst_grad_norm=max((r.grad_norm for r in rows.values() if r.grad_norm is not None), default=None),
        flagged=_flagged(rows, actual, noise_floor),
        corrected=_corrected(layout, stored, ids, removal),
    )


def _corrected(
    layout: Layout, stored: StoredInfluences, ids: NDArray[np.int64], removal: Removal
) -> NDArray[np.float64] | None:
    path = layout.removals(stored.test_id)
    if not path.exists():
        return None
    if (found := removals.load(path)).settings != stored.settings or found.test_id != stored.test_id:
        log.warning("%s belongs to other scores and is left out; run `ifloo influence` again.", path)
        return None
    effects = dict(zip(found.ids.tolist(), found.effects.tolist(), strict=True))
    predicted = np.array([effects.get(i, np.nan) for i in ids.tolist()])
    return predicted + (stored.score_mean if removal == "drop" else 0.0)


def _flagged(rows: dict[int, LossRow], actual: NDArray[np.float64], noise_floor: float | None) -> int | None:
    refits = [row for i, row in rows.items() if i != NULL_ID]
    errors = [noise_floor if row.delta_error is None else row.delta_error for row in refits]
    if any(error is None for error in errors):
        return None
    return sum(e > UNSURE * abs(change) for e, change in zip(errors, actual.tolist(), strict=True) if e is not None)


def _spread(nulls: list[LossRow]) -> float | None:
    losses = [row.loss for row in nulls]
    return max(losses) - min(losses) if len(losses) > 1 else None


def _positions(stored: StoredInfluences, ids: NDArray[np.int64]) -> NDArray[np.int64]:
    order = np.argsort(stored.train_ids)
    place = np.searchsorted(stored.train_ids, ids, sorter=order).clip(max=len(order) - 1)
    found = order[place]
    if (unknown := ids[stored.train_ids[found] != ids]).size:
        raise InputError(
            f"Test {stored.test_id}: refits of ids {unknown[:5].tolist()} have no score: they are of other data.\n"
            "  Run `ifloo influence` and `ifloo loo` on the same data."
        )
    return found


def _of_one_model(layout: Layout) -> tuple[Removal, list[int]]:
    sections = Manifest.at(layout.manifest).sections()
    for name in ("influence", "loo"):
        if name not in sections:
            raise InputError(f"{layout.manifest} has no section {name!r}. Run `ifloo {name}` before the report.")
    scores, refits = sections["influence"]["compared"], sections["loo"]["compared"]
    for name in ("weights", "data", "objective"):
        if name in scores and name in refits and scores[name] != refits[name]:
            raise InputError(
                f"{layout.root}: scores and refits are of different base models ({name}: {scores[name]} and "
                f"{refits[name]}).\n  Run `ifloo influence` and `ifloo loo` on one checkpoint."
            )
    return refits["removal"], list(sections["loo"]["recorded"].get("random_ids", []))
