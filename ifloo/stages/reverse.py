"""A reverse pass over a training run, kept on disk between segments, so that a killed one goes on."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ifloo.attribution import Reverse
from ifloo.store import write_npz

# AttributeError, or TypeError by the version of Python: an array where an archive should be.
_UNREADABLE = (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile)


@dataclass(frozen=True)
class KeptReverse:
    """One file that holds the last reverse pass; of other settings or tests, it is as if it were not there.

    Attributes:
        path: of the file.
        stamp: of settings and tests.
        device: where the pass goes on.
    """

    path: Path
    stamp: str
    device: torch.device

    def load(self) -> Reverse | None:
        """The pass as it was last kept; None: none of these settings, or a damaged file."""
        try:
            with open(self.path, "rb") as file, np.load(file, allow_pickle=False) as found:
                if str(found["stamp"]) != self.stamp:
                    return None
                moments = [self._tensor(found[n]) for n in sorted(n for n in found.files if n.startswith("moment_"))]
                theta, scores = self._tensor(found["theta"]), self._tensor(found["scores"])
                return Reverse(int(found["step"]), theta, tuple(moments), scores, float(found["distance"]))
        except _UNREADABLE:
            return None

    def keep(self, reverse: Reverse) -> None:
        """Takes the place of the last.

        Raises:
            WorkError: the disk is full or not writable.
        """
        arrays = {f"moment_{k}": x.cpu().numpy() for k, x in enumerate(reverse.moments)}
        arrays |= {"theta": reverse.theta.cpu().numpy(), "scores": reverse.scores.cpu().numpy()}
        numbers = {"stamp": self.stamp, "step": reverse.step, "distance": reverse.distance}
        write_npz(self.path, arrays | {name: np.asarray(value) for name, value in numbers.items()})

    def forget(self) -> None:
        """It is done with."""
        self.path.unlink(missing_ok=True)

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device)
