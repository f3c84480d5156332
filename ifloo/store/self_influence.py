"""What each training sample does to its own loss, on disk, beside that loss."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ifloo.errors import InputError, WorkError
from ifloo.store.atomic import write_npz

_RANKINGS = ("self_influence", "tracin", "last_layer", "left_out_loss", "loss")
_OPTIONAL = _RANKINGS[:-1]
_NUMBERS = ("residual", "undamped_residual", "error_bound")


@dataclass(frozen=True, eq=False)
class StoredSelfInfluence:
    """Rankings of all n training samples, each `[n]`, in nats; None where the model or its run gives none.

    `self_influence` (as the scores are made), `tracin` and `last_layer` are self-influences; `loss` is ℓ_i, the ranking
    they must beat, and `left_out_loss` that of the model without i. `damping` is that of `last_layer`'s curvature.
    `settings` is the stamp of what they were made with (`settings_stamp`). The rest belongs to `self_influence`: the
    worst relative residual of its n solves, that of the undamped system, and how far no value is from the damped
    solution, nats.
    """

    train_ids: NDArray[np.int64]
    loss: NDArray[np.float64]
    last_layer: NDArray[np.float64] | None
    tracin: NDArray[np.float64] | None
    damping: float
    definitions: str
    settings: str
    self_influence: NDArray[np.float64] | None = None
    left_out_loss: NDArray[np.float64] | None = None
    residual: float | None = None
    undamped_residual: float | None = None
    error_bound: float | None = None

    @property
    def rankings(self) -> dict[str, NDArray[np.float64]]:
        """Those there are, by name."""
        found = {name: getattr(self, name) for name in _RANKINGS}
        return {name: value for name, value in found.items() if value is not None}


def save(path: Path, stored: StoredSelfInfluence) -> None:
    """Write the npz, whole or not at all; rankings that are None are left out of it.

    Raises:
        WorkError: a number is not finite, or the disk is full; an old file is whole.
    """
    if (fault := _fault(stored)) is not None:
        raise WorkError(
            f"{path} was not written: {fault}.\n"
            "  An old file there is unchanged. The calculation that gave these numbers went wrong; its log says more."
        )
    write_npz(path, {name: np.asarray(value) for name, value in vars(stored).items() if value is not None})


def load(path: Path) -> StoredSelfInfluence:
    """Read what `save` wrote.

    Raises:
        InputError: the file is missing, damaged or not of this kind.
    """
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as content:
            optional: dict[str, Any] = {name: content.get(name) for name in _OPTIONAL}
            numbers: dict[str, Any] = {name: float(content[name]) for name in _NUMBERS if name in content}
            stored = StoredSelfInfluence(
                train_ids=content["train_ids"].astype(np.int64),
                loss=content["loss"].astype(np.float64),
                damping=float(content["damping"]),
                definitions=str(content["definitions"]),
                settings=str(content["settings"]),
                **optional,
                **numbers,
            )
    except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(_not_one(path, str(error) or type(error).__name__)) from error
    if (fault := _fault(stored)) is not None:
        raise InputError(_not_one(path, fault))
    return stored


def _fault(stored: StoredSelfInfluence) -> str | None:
    for name, value in stored.rankings.items():
        if value.shape != stored.train_ids.shape or value.ndim != 1:
            return f"{name} {value.shape} and train_ids {stored.train_ids.shape} are not one per training sample"
        if bad := int((~np.isfinite(value)).sum()):
            return f"{bad} of {value.size} numbers of {name} are not finite"
    return None


def _not_one(path: Path, reason: str) -> str:
    return (
        f"{path} holds no self-influence of ifloo: {reason}.\n"
        "  Delete it and run `ifloo influence` with --attribution.self_influence true again."
    )
