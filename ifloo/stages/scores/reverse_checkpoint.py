"""A reverse pass over a training run, kept on disk between segments, so that a killed one goes on."""

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
        "theta": Column(None, ("test", "parameter")),  # and moment_0, moment_1, ... of the same form
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
    """One file that holds the last reverse pass; of other settings or tests, it is as if it were not there.

    Attributes:
        path: of the file.
        stamp: of settings and tests.
        device: where the pass goes on.
    """

    path: Path
    stamp: str
    device: torch.device

    def load(self) -> ReverseState | None:
        """The pass as it was last kept; None: none of these settings, or a damaged file."""
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
        """Takes the place of the last.

        Raises:
            WorkError: the disk is full or not writable.
        """
        arrays = {f"moment_{k}": x.cpu().numpy() for k, x in enumerate(reverse.moments)}
        arrays |= {"theta": reverse.theta.cpu().numpy(), "scores": reverse.scores.cpu().numpy()}
        numbers = {"stamp": self.stamp, "step": reverse.step, "distance": reverse.distance}
        _PASS.write(self.path, arrays | numbers)

    def forget(self) -> None:
        """It is done with."""
        self.path.unlink(missing_ok=True)

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device)
