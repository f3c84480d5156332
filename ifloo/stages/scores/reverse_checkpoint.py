"""File of a reverse pass over a training run, written between its segments, from which a killed pass resumes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ifloo.attribution import ReverseState
from ifloo.errors import InputError
from ifloo.store.npz_record import Column, Record

_PASS = Record(
    {
        "theta": Column(None, ("test", "parameter")),  # also moment_0, moment_1, ... of the same form
        "scores": Column(None, ("test", "training sample")),
        "stamp": Column(str),
        "step": Column(np.int64),
        "distance": Column(np.float64),
    },
    keys={"test": "theta"},
    refusal="{path} holds no reverse pass of ifloo",
    remedy="Delete it and run the same command again.",
)


@dataclass(frozen=True)
class ReverseCheckpointFile:
    """File of the last state of a reverse pass; a state of other settings or tests is ignored.

    Attributes:
        path: Path of the file.
        stamp: Stamp of the settings and tests.
        device: Device on which the pass resumes.
    """

    path: Path
    stamp: str
    device: torch.device

    def load(self) -> ReverseState | None:
        """Returns the last state; None if there is none of these settings, or the file is damaged."""
        try:
            found = _PASS.read(self.path)
        except InputError:
            return None
        if str(found["stamp"]) != self.stamp:
            return None
        moments = tuple(self._tensor(found[name]) for name in sorted(n for n in found if n.startswith("moment_")))
        theta, scores = self._tensor(found["theta"]), self._tensor(found["scores"])
        return ReverseState(int(found["step"]), theta, moments, scores, float(found["distance"]))

    def keep(self, reverse: ReverseState) -> None:
        """Writes a state in place of the last one.

        Raises:
            WorkError: The disk is full or not writable.
        """
        arrays = {f"moment_{k}": x.cpu().numpy() for k, x in enumerate(reverse.moments)}
        arrays |= {"theta": reverse.theta.cpu().numpy(), "scores": reverse.scores.cpu().numpy()}
        numbers = {"stamp": self.stamp, "step": reverse.step, "distance": reverse.distance}
        _PASS.write(self.path, arrays | numbers)

    def forget(self) -> None:
        """Deletes the file at the end of the pass."""
        self.path.unlink(missing_ok=True)

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device)
