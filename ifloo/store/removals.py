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

    `effects` is that of a removal with n kept; where the row is deleted, `score_mean` is added to it. `leverages` are
    those of the samples (dimensionless). `settings` is the stamp of the scores they belong to (`settings_stamp`).
    """

    test_id: int
    ids: NDArray[np.int64]
    effects: NDArray[np.float64]
    leverages: NDArray[np.float64]
    score_mean: float
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
            return StoredRemovals(
                test_id=int(content["test_id"]),
                ids=content["ids"].astype(np.int64),
                effects=content["effects"].astype(np.float64),
                leverages=content["leverages"].astype(np.float64),
                score_mean=float(content["score_mean"]),
                definitions=str(content["definitions"]),
                settings=str(content["settings"]),
            )
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f"{path} holds no predicted removals of ifloo: {str(error) or type(error).__name__}.\n"
            "  Delete it and run `ifloo influence` with --attribution.corrected true again."
        ) from error
