"""Scores of one test sample on disk, together with the certificate of the solve they come from."""

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ifloo.errors import InputError, WorkError
from ifloo.store.atomic import write_npz

_NUMBERS = ("score_mean", "damping")
_OPTIONAL_NUMBERS = ("residual", "undamped_residual", "error_bound", "repeat_error")
_INTEGERS = ("test_id", "steps")
_TEXTS = ("status", "method", "definitions", "settings")


@dataclass(frozen=True, eq=False)
class StoredInfluences:
    """Scores `s[t, i]` of all n training samples on one test loss, in nats per unit weight; negative = helpful.

    `score_mean` is the mean over all n of the scores before they were rounded to float32. `residual` is the relative
    residual of the damped system (None where the method solved nothing), `undamped_residual` that of the undamped one,
    `error_bound` the largest possible error of a score (nats per unit weight) to the damped solution, `repeat_error`
    the standard error between repeats of a stochastic solver relative to its solution; None where not known.
    `residual_curve`, `[steps, 2]`, is the way of the solve: step, and worst relative residual of the damped system over
    the tests solved together, as the solver saw it, the last recomputed on the full data; None where nothing was solved
    or nobody kept it. `settings` is the stamp of what the scores were made with (`settings_stamp`).
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


def save(path: Path | str, stored: StoredInfluences) -> None:
    """Write the npz. Optional numbers that are None are left out of it.

    Raises:
        WorkError: a score or another number is not finite, ids repeat, or the disk is full; an old file is whole.
    """
    if (fault := _fault(stored)) is not None:
        raise WorkError(
            f"{path} was not written: {fault}.\n"
            "  An old file there is unchanged. The calculation that gave these scores went wrong; its log says more."
        )
    names = _NUMBERS + _INTEGERS + _TEXTS + tuple(n for n in _OPTIONAL_NUMBERS if getattr(stored, n) is not None)
    arrays = {name: np.asarray(getattr(stored, name)) for name in names}
    arrays["scores"] = np.asarray(stored.scores, dtype=np.float32)
    arrays["train_ids"] = np.asarray(stored.train_ids, dtype=np.int64)
    if stored.residual_curve is not None:
        arrays["residual_curve"] = stored.residual_curve
    write_npz(path, arrays)


def load(path: Path | str) -> StoredInfluences:
    """Read what `save` wrote.

    Raises:
        InputError: the file is missing, damaged, or not of this kind, or holds a number that is not finite.
    """
    path = Path(path)
    try:
        arrays = _arrays(path)
    except FileNotFoundError:
        raise InputError(
            f"There are no influence scores at {path}.\n  Run `ifloo influence` for this test id first."
        ) from None
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise InputError(_no_scores(path, f"not a readable npz ({str(error) or type(error).__name__})")) from error
    required = ("scores", "train_ids", *_NUMBERS, *_INTEGERS, *_TEXTS)
    if missing := [name for name in required if name not in arrays]:
        raise InputError(_no_scores(path, f"it lacks {', '.join(missing)}"))
    if arrays["scores"].dtype.kind != "f" or arrays["train_ids"].dtype.kind not in "iu":
        kinds = f"scores are {arrays['scores'].dtype}, train_ids {arrays['train_ids'].dtype}"
        raise InputError(_no_scores(path, f"{kinds}, not float32 and int64"))
    fields: dict[str, Any] = {
        "scores": arrays["scores"].astype(np.float32),
        "train_ids": arrays["train_ids"].astype(np.int64),
    }
    try:
        fields |= {name: float(arrays[name]) for name in _NUMBERS}
        fields |= {name: float(arrays[name]) if name in arrays else None for name in _OPTIONAL_NUMBERS}
        fields |= {name: int(arrays[name]) for name in _INTEGERS}
        fields |= {name: str(arrays[name]) for name in _TEXTS}
    except (TypeError, ValueError) as error:
        raise InputError(_no_scores(path, f"a setting is not a single value ({error})")) from error
    stored = StoredInfluences(**fields, residual_curve=arrays.get("residual_curve"))
    if (fault := _fault(stored)) is not None:
        raise InputError(_no_scores(path, fault))
    return stored


def _arrays(path: Path) -> dict[str, np.ndarray]:
    with open(path, "rb") as file:
        content = np.load(file, allow_pickle=False)
        if not isinstance(content, np.lib.npyio.NpzFile):
            raise ValueError("it holds one bare array")
        with content:
            return {name: content[name] for name in content.files}


def _fault(stored: StoredInfluences) -> str | None:
    scores, ids = np.asarray(stored.scores), np.asarray(stored.train_ids)
    if scores.ndim != 1 or scores.shape != ids.shape:
        return f"scores {scores.shape} and train_ids {ids.shape} are not one per training sample"
    if bad := int((~np.isfinite(scores)).sum()):
        first = int(ids[np.flatnonzero(~np.isfinite(scores))[0]])
        return f"{bad} of {scores.size} scores are not finite (the first is that of training id {first})"
    if repeated := ids.size - np.unique(ids).size:
        return f"{repeated} of {ids.size} training ids stand there twice"
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


def _no_scores(path: Path, reason: str) -> str:
    return (
        f"{path} holds no influence scores of ifloo: {reason}.\n"
        "  Delete it and run `ifloo influence` for this test id again."
    )
