"""Points of a fit whose weights are scored: the end of an epoch, the end of the fit, and the best checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

import lightning as L
import torch
from torch import Tensor

from ifloo.errors import InputError, WorkError, first_sentence, in_one_line
from ifloo.store import sha256_of_tensors

RAW = "raw weights at the end of an epoch"
LAST = "weights that the fit ends with"
BEST = "best checkpoint"
WeightsT = TypeVar("WeightsT", bound=str)


@dataclass(frozen=True)
class Moment:
    """Point of a fit.

    Attributes:
        epoch: Number of completed epochs.
        step: Number of optimizer steps.
        weights: Kind of the weights, for readers: `RAW`, `LAST`, or `BEST` with its file.
        best: Whether the weights are those of the best checkpoint.
    """

    epoch: int
    step: int
    weights: str
    best: bool = False

    @property
    def folder(self) -> str:
        """Name of the folder of the scores."""
        return "best" if self.best else f"epoch_{self.epoch:03d}"

    def __str__(self) -> str:
        return "of the best checkpoint" if self.best else f"after epoch {self.epoch}"


@runtime_checkable
class _KeepsBest(Protocol):
    """What this package reads of a ModelCheckpoint."""

    monitor: str | None
    best_model_path: str


@dataclass(frozen=True)
class BestCheckpoint:
    """Content of the checkpoint that a ModelCheckpoint calls the best.

    Attributes:
        path: File.
        content: Content of the file.
    """

    path: Path
    content: Mapping[str, object]

    @classmethod
    def read(cls, path: str) -> BestCheckpoint:
        """Reads a checkpoint without executing code from it.

        Raises:
            WorkError: The file cannot be read as plain values, or it is no Lightning checkpoint.
        """
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # unpickling a damaged file may raise any exception
            raise WorkError(
                f"The best checkpoint {path} cannot be read as plain values: {first_sentence(error)}.\n"
                "  Keep objects of your own out of hyper-parameters and callbacks, or score the file by a command."
            ) from error
        if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
            raise WorkError(
                f"The best checkpoint {path} holds no 'state_dict'.\n  Leave weights='best' out, or write whole "
                "checkpoints."
            )
        return cls(Path(path), content)

    @classmethod
    def of(cls, trainer: L.Trainer) -> BestCheckpoint:
        """Reads the best checkpoint of a fit, without executing code from it.

        Raises:
            WorkError: There is none, or it cannot be read as plain values.
        """
        if (path := best_path(trainer)) is None:
            raise WorkError(
                "ModelCheckpoint has written no checkpoint that it calls the best.\n"
                "  Let it save at least once, or leave weights out."
            )
        return cls.read(path)

    @property
    def state(self) -> dict[str, Tensor]:
        """Weights by name."""
        return _tensors(self.content["state_dict"])

    @property
    def moment(self) -> Moment:
        """Point of the fit at which the checkpoint was written."""
        epoch, step = self.content.get("epoch"), self.content.get("global_step")
        completed = epoch + 1 if isinstance(epoch, int) else 0
        return Moment(completed, step if isinstance(step, int) else 0, f"{BEST} {self.path.name}", best=True)

    def same_weights(self, module: L.LightningModule) -> bool:
        """Tells whether the weights equal those of a module, bit by bit."""
        own, mine = _tensors(module.state_dict()), self.state
        return own.keys() == mine.keys() and all(torch.equal(x.cpu(), mine[name]) for name, x in own.items())

    def load_into(self, module: L.LightningModule) -> None:
        """Loads the weights as Lightning does: first the module's own hook for checkpoints, then the state."""
        module.on_load_checkpoint(dict(self.content))
        module.load_state_dict(self.content["state_dict"], strict=module.strict_loading)  # type: ignore[arg-type]


def weights_of(module: L.LightningModule) -> str:
    """Computes the SHA-256 of a module's state."""
    return sha256_of_tensors(_tensors(module.state_dict()))


def best_path(trainer: L.Trainer) -> str | None:
    """Returns the best checkpoint of a fit, of a monitored quantity where there is one; None before one is written."""
    kept = [one for one in trainer.checkpoint_callbacks if isinstance(one, _KeepsBest) and one.best_model_path]
    return min(kept, key=lambda one: one.monitor is None).best_model_path if kept else None


def other_best(trainer: L.Trainer, module: L.LightningModule) -> str | None:
    """Returns a line about the best checkpoint if its weights are not those of the module, which are scored."""
    if (path := best_path(trainer)) is None:
        return None
    try:
        best = BestCheckpoint.read(path)
    except WorkError as error:
        return f"The last weights are scored; whether the best checkpoint has others is unknown. {in_one_line(error)}"
    if best.same_weights(module):
        return None
    return (
        f"The last weights are scored; the best checkpoint {path} (epoch {best.moment.epoch}, step {best.moment.step}) "
        "has others. InfluenceCallback(weights='best') scores it."
    )


def last_or_best(weights: WeightsT) -> WeightsT:
    """Returns the name of the weights that are scored at the end of a fit.

    Raises:
        InputError: It is neither `last` nor `best`.
    """
    if weights not in ("last", "best"):
        raise InputError(f"InfluenceCallback: weights must be 'last' or 'best', got {weights!r}.")
    return weights


def refuse_without_checkpoints(trainer: L.Trainer) -> None:
    """Checks that the fit writes checkpoints.

    Raises:
        InputError: There is no ModelCheckpoint.
    """
    if not any(isinstance(one, _KeepsBest) for one in trainer.checkpoint_callbacks):
        raise InputError(
            "weights='best' scores the best checkpoint, and this fit has no ModelCheckpoint.\n"
            "  Add ModelCheckpoint(monitor=...) to the callbacks, or leave weights out."
        )


def _tensors(state: object) -> dict[str, Tensor]:
    assert isinstance(state, Mapping)
    return {str(name): x for name, x in state.items() if isinstance(x, Tensor)}
