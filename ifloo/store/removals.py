"""Predicted effects of single removals on disk, for methods beyond scores, such as the correction for leverage."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ifloo.errors import WorkError
from ifloo.store.npz_record import Column, Record

_SAMPLE = "removed sample"
RECORD = Record(
    {
        "test_id": Column(np.int64),
        "ids": Column(np.int64, (_SAMPLE,)),
        "effects": Column(np.float64, (_SAMPLE,)),
        "leverages": Column(np.float64, (_SAMPLE,)),
        "residual": Column(np.float64),
        "damping": Column(np.float64),
        "definitions": Column(str),
        "settings": Column(str),
    },
    keys={_SAMPLE: "ids"},
    refusal="{path} holds no predicted removals of ifloo",
    remedy="Delete it and run `ifloo influence` with --attribution.corrected true again.",
)


@dataclass(frozen=True, eq=False)
class StoredRemovals:
    """Predicted changes of one test loss when the weight of one of k training samples goes to zero.

    Attributes:
        test_id: Id of the test sample.
        ids: Ids of the removed samples, `[k]`.
        effects: Predicted changes, `[k]`, nats, with n kept; a deletion of the row adds the mean of the test's scores.
        leverages: Leverages of the samples, `[k]`, dimensionless.
        residual: Relative residual of the solve of `effects`.
        damping: δ of that solve, nats per squared parameter.
        definitions: Definition of the effects, as text.
        settings: Stamp of the settings of the scores that they belong to (`settings_stamp`).
    """

    test_id: int
    ids: NDArray[np.int64]
    effects: NDArray[np.float64]
    leverages: NDArray[np.float64]
    residual: float
    damping: float
    definitions: str
    settings: str


def save(path: Path, stored: StoredRemovals) -> None:
    """Writes the npz atomically.

    Raises:
        WorkError: If an effect or a leverage is not finite, or the disk is full; an old file is then unchanged.
    """
    if not (np.isfinite(stored.effects).all() and np.isfinite(stored.leverages).all()):
        bad = stored.ids[~(np.isfinite(stored.effects) & np.isfinite(stored.leverages))]
        raise WorkError(
            f"{path} was not written: the predicted effects of removing {bad[:5].tolist()} are not finite.\n"
            "  A sample of leverage 1 leaves no minimum behind; raise the penalty or the damping."
        )
    RECORD.write(path, vars(stored))


def load(path: Path) -> StoredRemovals:
    """Reads a file that `save` wrote.

    Raises:
        InputError: If the file is damaged or not of this kind.
    """
    arrays = RECORD.read(path)
    stored = StoredRemovals(
        test_id=int(arrays["test_id"]),
        ids=arrays["ids"],
        effects=arrays["effects"],
        leverages=arrays["leverages"],
        residual=float(arrays["residual"]),
        damping=float(arrays["damping"]),
        definitions=str(arrays["definitions"]),
        settings=str(arrays["settings"]),
    )
    if not (np.isfinite(stored.effects).all() and np.isfinite(stored.leverages).all()):
        raise RECORD.refused(path, "an effect is not finite")
    return stored
