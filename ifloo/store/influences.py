"""Scores of one test sample on disk, with the certificate of their solve."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ifloo.errors import InputError, WorkError
from ifloo.store.npz_record import Column, Record, optional_number

_OPTIONAL_NUMBERS = ("residual", "undamped_residual", "error_bound", "repeat_error")
_NUMBERS = ("score_mean", "damping")
_SAMPLE = "training sample"
RECORD = Record(
    {
        "score_mean": Column(np.float64),
        "damping": Column(np.float64),
        "test_id": Column(np.int64),
        "steps": Column(np.int64),
        **{name: Column(str) for name in ("status", "method", "definitions", "settings")},
        **{name: Column(np.float64, optional=True) for name in _OPTIONAL_NUMBERS},
        "factors": Column(np.float64, (_SAMPLE,), optional=True),
        "scores": Column(np.float32, (_SAMPLE,)),
        "train_ids": Column(np.int64, (_SAMPLE,)),
    },
    keys={_SAMPLE: "train_ids"},
    refusal="{path} holds no influence scores of ifloo",
    remedy="Delete it and run `ifloo influence` for this test id again.",
)


@dataclass(frozen=True, eq=False)
class StoredInfluences:
    """Scores `s[t, i]` of all n training samples on one test loss, in nats per unit weight; negative = helpful.

    Attributes:
        test_id: Id of the test sample.
        scores: Scores, `[n]`, nats per unit weight.
        train_ids: Ids of the training samples, `[n]`.
        score_mean: Mean of all n scores before they were rounded to float32, nats per unit weight.
        residual: Relative residual of the damped system; None if the method solved no system.
        undamped_residual: Relative residual of the undamped system; None if the method solved no system.
        error_bound: Largest possible distance of a score from the damped solution, nats per unit weight; None if
            unknown.
        steps: Number of solver steps.
        status: Name of the solver's status.
        damping: δ added to the curvature, nats per squared parameter.
        method: Name of the method.
        definitions: Definition of the scores, as text.
        settings: Stamp of the settings of the scores (`settings_stamp`).
        repeat_error: Standard error between repeats of a stochastic solver, relative to its solution; None if unknown.
        residual_curve: Step and worst relative residual of the damped system over the tests solved together,
            `[steps, 2]`. The last residual is recomputed on the full data, the others are the solver's own. None if no
            system was solved or the curve was not recorded.
        factors: n·c_i of each training sample, `[n]`, where J = Σ c_i ℓ_i weighs them; None if J is the plain mean.
    """

    test_id: int
    scores: NDArray[np.float32]
    train_ids: NDArray[np.int64]
    score_mean: float
    residual: float | None
    undamped_residual: float | None
    error_bound: float | None
    steps: int
    status: str
    damping: float
    method: str
    definitions: str
    settings: str
    repeat_error: float | None = None
    residual_curve: NDArray[np.float64] | None = None
    factors: NDArray[np.float64] | None = None


def save(path: Path | str, stored: StoredInfluences) -> None:
    """Writes the npz, without optional numbers that are None.

    Raises:
        WorkError: If a score or another number is not finite, an id repeats, or the disk is full; an old file is then
            unchanged.
    """
    if (fault := _fault(stored)) is not None:
        raise WorkError(
            f"{path} was not written: {fault}.\n"
            "  An old file there is unchanged. The calculation that gave these scores went wrong; its log says more."
        )
    values = {name: getattr(stored, name) for name in (*RECORD.columns, "residual_curve")}
    RECORD.write(Path(path), {name: value for name, value in values.items() if value is not None})


def load(path: Path | str) -> StoredInfluences:
    """Reads a file that `save` wrote.

    Raises:
        InputError: If the file is missing, damaged, or not of this kind, or holds a number that is not finite.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"There are no influence scores at {path}.\n  Run `ifloo influence` for this test id first.")
    arrays = RECORD.read(path)
    stored = StoredInfluences(
        test_id=int(arrays["test_id"]),
        scores=arrays["scores"],
        train_ids=arrays["train_ids"],
        score_mean=float(arrays["score_mean"]),
        residual=optional_number(arrays, "residual"),
        undamped_residual=optional_number(arrays, "undamped_residual"),
        error_bound=optional_number(arrays, "error_bound"),
        steps=int(arrays["steps"]),
        status=str(arrays["status"]),
        damping=float(arrays["damping"]),
        method=str(arrays["method"]),
        definitions=str(arrays["definitions"]),
        settings=str(arrays["settings"]),
        repeat_error=optional_number(arrays, "repeat_error"),
        residual_curve=arrays.get("residual_curve"),
        factors=arrays.get("factors"),
    )
    if (fault := _fault(stored)) is not None:
        raise RECORD.refused(path, fault)
    return stored


def _fault(stored: StoredInfluences) -> str | None:
    scores, ids = np.asarray(stored.scores), np.asarray(stored.train_ids)
    if scores.ndim != 1 or scores.shape != ids.shape:
        return f"scores {scores.shape} and train_ids {ids.shape} are not one per training sample"
    if bad := int((~np.isfinite(scores)).sum()):
        first = int(ids[np.flatnonzero(~np.isfinite(scores))[0]])
        return f"{bad} of {scores.size} scores are not finite (the first is that of training id {first})"
    if repeated := ids.size - np.unique(ids).size:
        return f"{repeated} of {ids.size} training ids are repeated"
    for name in _NUMBERS + _OPTIONAL_NUMBERS:
        if (value := getattr(stored, name)) is not None and not np.isfinite(value):
            return f"{name} is {value}"
    return None if stored.residual_curve is None else _fault_of_curve(stored.residual_curve)


def _fault_of_curve(curve: NDArray[np.float64]) -> str | None:
    if curve.dtype != np.float64:
        return f"residual_curve is {curve.dtype}, not float64"
    if curve.ndim != 2 or curve.shape[1:] != (2,) or not len(curve):
        return f"residual_curve {curve.shape} is not a step and a residual a row"
    if not np.isfinite(curve).all():
        return "residual_curve holds numbers that are not finite"
    if (np.diff(curve[:, 0]) <= 0).any():
        return "the steps of residual_curve do not increase"
    return None
