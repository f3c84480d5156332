"""Recorded training runs on disk: samples and learning rate of each step, and saved states."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ifloo.attribution.recorded import RecordedRun, State, Update
from ifloo.attribution.updates import SGD, Adam
from ifloo.errors import InputError
from ifloo.store.atomic import write_json
from ifloo.store.fingerprint import sha256_of_tensors
from ifloo.store.npz_record import Column, Record

_REMEDY = "It is damaged. Fit again (`ifloo fit --overwrite`)."
_STATE = Record(
    {"theta": Column(None, ("parameter",))},  # also moment_0, moment_1, ... of the same shape
    keys={"parameter": "theta"},
    refusal="The recorded state {path} cannot be read",
    remedy=_REMEDY,
)
_STEPS = Record(
    {
        "ids": Column(np.int64, ("visit",)),
        "lengths": Column(np.int64, ("step",)),
        "rates": Column(np.float64, ("step",)),
    },
    keys={"visit": "ids", "step": "lengths"},
    refusal="The recorded run at {folder} cannot be read: {name}",
    remedy=_REMEDY,
)
UPDATES: dict[str, type[Update]] = {"SGD": SGD, "Adam": Adam}


@dataclass(frozen=True)
class RunFolder:
    """Files of one recorded run.

    During a fit the files are in `<path>.part`; `finish` replaces an older run by the complete one. The run stores a
    hash of its final weights, so that it is never used with another checkpoint.

    Attributes:
        path: Folder of the run.
    """

    path: Path

    @classmethod
    def of(cls, checkpoint: Path) -> RunFolder:
        """Returns the folder of the run beside the checkpoint that it ended in."""
        return cls(checkpoint.with_suffix(".run"))

    @property
    def part(self) -> Path:
        return self.path.with_name(self.path.name + ".part")

    def begin(self) -> None:
        """Deletes the files of an interrupted fit."""
        shutil.rmtree(self.part, ignore_errors=True)

    def keep(self, step: int, state: State) -> None:
        """Writes one state.

        Raises:
            WorkError: If the disk is full or not writable.
        """
        arrays = {"theta": _array(state.theta)} | {f"moment_{k}": _array(x) for k, x in enumerate(state.moments)}
        _STATE.write(_state_file(self.part, step), arrays)

    def finish(self, update: Update, batch_ids: Sequence[Tensor], rates: Sequence[float], saved: Sequence[int]) -> None:
        """Writes samples and learning rate of each step, and makes this the run of the checkpoint.

        Raises:
            WorkError: If the disk is full or not writable.
        """
        flat = torch.cat(list(batch_ids)).numpy() if batch_ids else np.empty(0, np.int64)
        lengths = np.array([len(ids) for ids in batch_ids], np.int64)
        _STEPS.write(self.part / "steps.npz", {"ids": flat, "lengths": lengths, "rates": rates})
        end = _read_state(_state_file(self.part, saved[-1]))
        rule = {"class": type(update).__name__, **asdict(update)}  # type: ignore[call-overload]
        final_weights = sha256_of_tensors({"theta": end.theta})
        write_json(self.part / "run.json", {"update": rule, "saved": list(saved), "end": final_weights})
        shutil.rmtree(self.path, ignore_errors=True)
        os.replace(self.part, self.path)

    def read(self, theta: Tensor) -> RecordedRun:
        """Reads the run that ended at these weights; its states are read on access, to the device of the weights.

        Raises:
            InputError: If there is no run, it is damaged, or it ended at other weights.
        """
        if not (self.path / "run.json").is_file():
            raise InputError(
                f"There is no recorded run at {self.path}: the fit of this checkpoint was not recorded.\n"
                "  Fit again with a config whose attribution.method (or one of attribution.compare_with) needs the "
                "run: `ifloo fit --overwrite`."
            )
        try:
            content: dict[str, Any] = json.loads((self.path / "run.json").read_text())
            rule = dict(content["update"])
            update = UPDATES[rule.pop("class")](**rule)
            saved, end = [int(k) for k in content["saved"]], str(content["end"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"The recorded run at {self.path} cannot be read: {error or type(error).__name__}.\n  {_REMEDY}"
            ) from error
        batch_ids, rates = _read_steps(self.path / "steps.npz")
        if end != sha256_of_tensors({"theta": theta.cpu()}):
            raise InputError(
                f"The recorded run at {self.path} ended at other weights than those of the checkpoint.\n"
                "  One of the two was replaced. Fit again (`ifloo fit --overwrite`)."
            )

        def state(k: int) -> State:
            found = _read_state(_state_file(self.path, k))
            return State(found.theta.to(theta), tuple(x.to(theta) for x in found.moments))

        return RecordedRun(update, batch_ids, rates, saved, state)


def _state_file(folder: Path, step: int) -> Path:
    return folder / f"state_{step:07d}.npz"


def _array(x: Tensor) -> np.ndarray:
    return x.detach().cpu().numpy()


def _read_steps(path: Path) -> tuple[list[Tensor], Tensor]:
    arrays = _STEPS.read(path)
    ids, lengths, rates = (torch.from_numpy(arrays[name]) for name in ("ids", "lengths", "rates"))
    if len(ids) != int(lengths.sum()):
        raise _STEPS.refused(path, f"{len(ids)} ids of {len(lengths)} steps, which hold {int(lengths.sum())} ids")
    return list(ids.split(lengths.tolist())), rates


def _read_state(path: Path) -> State:
    arrays = _STATE.read(path)
    moments = sorted(name for name in arrays if name.startswith("moment_"))
    return State(torch.from_numpy(arrays["theta"]), tuple(torch.from_numpy(arrays[name]) for name in moments))
