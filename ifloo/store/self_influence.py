"""Self-influence of the training samples and other rankings for label errors, on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ifloo.errors import WorkError
from ifloo.store.npz_record import Column, Record, optional_number

_RANKINGS = ("self_influence", "tracin", "last_layer", "left_out_loss", "loss")
_SAMPLE = "training sample"
RECORD = Record(
    {
        "train_ids": Column(np.int64, (_SAMPLE,)),
        **{name: Column(np.float64, (_SAMPLE,), optional=name != "loss") for name in _RANKINGS},
        "damping": Column(np.float64),
        "definitions": Column(str),
        "settings": Column(str),
        **{name: Column(np.float64, optional=True) for name in ("residual", "undamped_residual", "error_bound")},
    },
    keys={_SAMPLE: "train_ids"},
    refusal="{path} holds no self-influence of ifloo",
    remedy="Delete it and run `ifloo influence` with --attribution.self_influence true again.",
)


@dataclass(frozen=True, eq=False)
class StoredSelfInfluence:
    """Rankings of all n training samples, each `[n]`, in nats; None if the model or its run does not allow a ranking.

    Attributes:
        train_ids: Ids of the training samples, `[n]`.
        loss: Loss ℓ_i, the ranking that all others must beat.
        last_layer: Self-influence in the parameters of the last layer.
        tracin: Self-influence by TracIn.
        damping: δ in the curvature of `last_layer`, nats per squared parameter.
        definitions: Definitions of the rankings, as text.
        settings: Stamp of the settings of the rankings (`settings_stamp`).
        self_influence: Self-influence with the curvature and solver of the scores.
        left_out_loss: Loss of each sample under the model trained without it.
        residual: Worst relative residual of the n solves of `self_influence`.
        undamped_residual: Worst relative residual of the undamped system.
        error_bound: Largest possible distance of a value of `self_influence` from the damped solution, nats.
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
        """Existing rankings by name."""
        values = {name: getattr(self, name) for name in _RANKINGS}
        return {name: value for name, value in values.items() if value is not None}


def save(path: Path, stored: StoredSelfInfluence) -> None:
    """Writes the npz atomically, without rankings that are None.

    Raises:
        WorkError: If a number is not finite, or the disk is full; an old file is then unchanged.
    """
    if (fault := _fault(stored)) is not None:
        raise WorkError(
            f"{path} was not written: {fault}.\n"
            "  An old file there is unchanged. The calculation that gave these numbers went wrong; its log says more."
        )
    RECORD.write(path, {name: value for name, value in vars(stored).items() if value is not None})


def load(path: Path) -> StoredSelfInfluence:
    """Reads a file that `save` wrote.

    Raises:
        InputError: If the file is missing, damaged or not of this kind.
    """
    arrays = RECORD.read(path)
    stored = StoredSelfInfluence(
        train_ids=arrays["train_ids"],
        loss=arrays["loss"],
        last_layer=arrays.get("last_layer"),
        tracin=arrays.get("tracin"),
        damping=float(arrays["damping"]),
        definitions=str(arrays["definitions"]),
        settings=str(arrays["settings"]),
        self_influence=arrays.get("self_influence"),
        left_out_loss=arrays.get("left_out_loss"),
        residual=optional_number(arrays, "residual"),
        undamped_residual=optional_number(arrays, "undamped_residual"),
        error_bound=optional_number(arrays, "error_bound"),
    )
    if (fault := _fault(stored)) is not None:
        raise RECORD.refused(path, fault)
    return stored


def _fault(stored: StoredSelfInfluence) -> str | None:
    for name, value in stored.rankings.items():
        if value.shape != stored.train_ids.shape or value.ndim != 1:
            return f"{name} {value.shape} and train_ids {stored.train_ids.shape} are not one per training sample"
        if bad := int((~np.isfinite(value)).sum()):
            return f"{bad} of {value.size} numbers of {name} are not finite"
    return None
