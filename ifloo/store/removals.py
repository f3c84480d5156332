"""Predicted effects of single removals on disk, for methods that go beyond a score: leverage counted in, for one."""

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ifloo.errors import InputError, WorkError
from ifloo.store.atomic import write_npz


@dataclass(frozen=True, eq=False)
class StoredRemovals:
    """Predicted change of one test loss, nats, when the weight of each of some training samples goes to zero.

    `effects` is that of a removal with n kept; where the row is deleted, the mean of the test's scores is added.
    `leverages` are those of the samples (dimensionless), `residual` and `damping` those of the solve behind `effects`.
    `settings` is the stamp of the scores they belong to (`settings_stamp`).
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
    """Write the npz, whole or not at all.

    Raises:
        WorkError: an effect is not finite, or the disk is full; an old file is whole.
    """
    if not (np.isfinite(stored.effects).all() and np.isfinite(stored.leverages).all()):
        bad = stored.ids[~(np.isfinite(stored.effects) & np.isfinite(stored.leverages))]
        raise WorkError(
            f"{path} was not written: the predicted effects of removing {bad[:5].tolist()} are not finite.\n"
            "  A sample of leverage 1 leaves no minimum behind; raise the penalty or the damping."
        )
    write_npz(path, {name: np.asarray(value) for name, value in vars(stored).items()})


def load(path: Path) -> StoredRemovals:
    """Read what `save` wrote.

    Raises:
        InputError: the file is damaged or not of this kind.
    """
    try:
        with np.load(path, allow_pickle=False) as content:
            stored = StoredRemovals(
                test_id=int(content["test_id"]),
                ids=content["ids"].astype(np.int64),
                effects=content["effects"].astype(np.float64),
                leverages=content["leverages"].astype(np.float64),
                residual=float(content["residual"]),
                damping=float(content["damping"]),
                definitions=str(content["definitions"]),
                settings=str(content["settings"]),
            )
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(_no_removals(path, str(error) or type(error).__name__)) from error
    if not stored.ids.shape == stored.effects.shape == stored.leverages.shape:
        raise InputError(_no_removals(path, "not one effect and one leverage for each id"))
    if not (np.isfinite(stored.effects).all() and np.isfinite(stored.leverages).all()):
        raise InputError(_no_removals(path, "an effect is not finite"))
    return stored


def _no_removals(path: Path, reason: str) -> str:
    return (
        f"{path} holds no predicted removals of ifloo: {reason}.\n"
        "  Delete it and run `ifloo influence` with --attribution.corrected true again."
    )
