"""Checkpoints of base models: fitting and writing one, reading it back, restoring its weights with a check."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ifloo.data import AdaptedData, FitRecord
from ifloo.data.fit_record import KEY
from ifloo.data.protocol import AttributionData
from ifloo.errors import InputError, WorkError, first_sentence
from ifloo.minimize.newton_cg import FitEnd
from ifloo.models import unwrap
from ifloo.models.module import callbacks_of
from ifloo.refit.fit_termination import fit_unless_terminated
from ifloo.refit.newton_finish import NewtonFinish
from ifloo.refit.trainer_settings import TrainerSettings
from ifloo.store import JSON, replacing, sha256_of_tensors

SECTION = "ifloo"


@dataclass(frozen=True)
class BaseCheckpoint:
    """Content of a checkpoint file.

    Attributes:
        path: File that it was read from.
        state: Weights by name.
        model: Hyper-parameters of the model.
        data: Hyper-parameters of the data module.
        record: Settings and measurements of `fit_base`: seed, Trainer settings (key `recipe`), classes, data
            fingerprint, ‖∇J‖.
        trained_on: Record of the training data; None where the checkpoint has none.
    """

    path: Path
    state: Mapping[str, Tensor]
    model: dict[str, object]
    data: dict[str, object]
    record: dict[str, Any]
    trained_on: FitRecord | None = None

    def restore(self, module: L.LightningModule) -> None:
        """Copies the weights into a module.

        Raises:
            InputError: If the checkpoint is of another model, or its tensors have other shapes.
        """
        expected = {k: tuple(v.shape) for k, v in module.state_dict().items()}
        stored = {k: tuple(v.shape) for k, v in self.state.items()}
        if expected != stored:
            raise InputError(_mismatch(self, type(unwrap(module)).__name__, expected, stored))
        module.load_state_dict(self.state, strict=True)


def fit_base(
    module: L.LightningModule,
    datamodule: object,
    trainer: L.Trainer,
    finish: NewtonFinish,
    path: Path,
    record: Mapping[str, JSON],
) -> FitEnd:
    """Fits with the Trainer (whose callbacks include `finish`) and writes the checkpoint, atomically.

    Raises:
        InputError: If the data module is not a LightningDataModule.
        WorkError: If the fit does not converge or the checkpoint cannot be written.
        Terminated: If the process receives SIGTERM.
    """
    if not (isinstance(datamodule, L.LightningDataModule) and isinstance(datamodule, AttributionData)):
        raise InputError(
            "fit_base trains on a LightningDataModule, whose settings the checkpoint records; got a "
            f"{type(datamodule).__name__}.\n"
            "  Give a LightningDataModule with the members of ifloo.data.AttributionData, or wrap a plain one: "
            "ifloo.data.AdaptedData(datamodule)."
        )
    recorder = _Recorder(dict(record), datamodule)
    callbacks_of(trainer).append(recorder)
    fit_unless_terminated(trainer, module, datamodule)
    minimum = finish.minimum
    if minimum is None or not trainer.state.finished:
        raise WorkError("The fit was interrupted; no checkpoint was written.")
    recorder.record |= {"J": minimum.value, "grad_norm": minimum.grad_norm, "fingerprint": datamodule.fingerprint()}
    with replacing(path) as file:
        trainer.save_checkpoint(file.name, weights_only=False)
    return minimum


class _Recorder(L.Callback):
    """Adds ifloo's sections to the checkpoint: plain values only, so that it loads with weights_only=True."""

    def __init__(self, record: dict[str, Any], data: object) -> None:
        self.record, self.data = record, data
        self._trained_on: FitRecord | None = None

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, object]
    ) -> None:
        checkpoint[SECTION] = self.record
        if self._trained_on is None and isinstance(loader := trainer.train_dataloader, DataLoader):
            evaluation = self.data.evaluation_loaders() if isinstance(self.data, AdaptedData) else {}
            reload = trainer.reload_dataloaders_every_n_epochs  # type: ignore[attr-defined]  # set undeclared
            self._trained_on = FitRecord.of(loader, evaluation, reload_every_n_epochs=reload)
        if self._trained_on is not None:
            checkpoint[KEY] = self._trained_on.record()


def load_base(path: Path) -> BaseCheckpoint:
    """Reads a checkpoint that `fit_base` wrote, without executing code from it.

    Raises:
        InputError: If the file is missing, unreadable, or not a checkpoint of ifloo.
    """
    if not path.is_file():
        raise InputError(f"There is no checkpoint at {path}.\n  Run `ifloo fit` first, or name one with --checkpoint.")
    content = _read(path, "Run `ifloo fit` again.")
    if not isinstance(content, dict) or SECTION not in content or "state_dict" not in content:
        raise InputError(
            f"{path} was not written by `ifloo fit` (it has no section {SECTION!r}). Run `ifloo fit` first."
        )
    return _base(path, content, content[SECTION])


def load_foreign(path: Path, seed: int, settings: Mapping[str, Any]) -> BaseCheckpoint:
    """Reads a Lightning checkpoint of any Trainer, without executing code from it.

    Such a checkpoint does not record data, seed and Trainer settings of the fit: refits use the seed and the settings
    given here. A checkpoint that `fit_base` wrote keeps those it records.

    Args:
        path: Checkpoint file.
        seed: Random seed of the refits.
        settings: Fields of `TrainerSettings`. Defaults of those left out: one epoch (with `max_steps`, as many epochs
            as these steps take), float64 if the weights have it, else Lightning's defaults.

    Raises:
        InputError: If the file is missing, unreadable, or not a Lightning checkpoint.
    """
    if not path.is_file():
        raise InputError(f"There is no checkpoint at {path}.\n  Name one that a Lightning Trainer wrote (--ckpt_path).")
    content = _read(path, "Write the checkpoint without objects of your own in hyper-parameters and callbacks.")
    if not isinstance(content, dict) or "state_dict" not in content:
        raise InputError(
            f"{path} is no Lightning checkpoint (it has no 'state_dict').\n"
            "  Name one that trainer.save_checkpoint or ModelCheckpoint wrote."
        )
    if SECTION in content:
        return _base(path, content, content[SECTION])
    defaults: dict[str, Any] = {"max_epochs": -1} if "max_steps" in settings else {}
    base = _base(path, content, {})
    if any(v.dtype is torch.float64 for v in base.state.values()):
        defaults["precision"] = "64-true"
    identity = TrainerSettings(**{**defaults, **settings}).identity_settings()
    record = {"model_class": None, "seed": seed, "fingerprint": None, "recipe": identity, "given": dict(settings)}
    return _base(path, content, record)


def _read(path: Path, remedy: str) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling a damaged file may raise any exception
        raise InputError(
            f"{path} cannot be read as a checkpoint: {_reason(error)}.\n"
            f"  The file is damaged or holds more than weights and plain values. {remedy}"
        ) from error


def _base(path: Path, content: dict[str, Any], record: dict[str, Any]) -> BaseCheckpoint:
    model, data = content.get("hyper_parameters", {}), content.get("datamodule_hyper_parameters", {})
    return BaseCheckpoint(
        path, content["state_dict"], _settings(model), _settings(data), record, FitRecord.read(content)
    )


def _reason(error: Exception) -> str:
    """Returns the first sentence of torch's message, which may be a page long or a single number."""
    sentence, kind = first_sentence(error), type(error).__name__
    return sentence if " " in sentence or sentence == kind else f"{kind} {sentence}"


def weights_sha256(module: L.LightningModule) -> str:
    """Computes the SHA-256 of the module's weights; equal tensors give equal text on every machine."""
    return sha256_of_tensors(dict(module.state_dict()))


def _settings(hyper_parameters: Mapping[str, object]) -> dict[str, object]:
    return {k: v for k, v in hyper_parameters.items() if not k.startswith("_")}


def _mismatch(
    base: BaseCheckpoint, name: str, expected: Mapping[str, tuple[int, ...]], stored: Mapping[str, tuple[int, ...]]
) -> str:
    """Describes how the tensors of a checkpoint differ from those of a model of class `name`."""
    missing, extra = sorted(expected.keys() - stored.keys()), sorted(stored.keys() - expected.keys())
    kind = base.record.get("model_class")
    lines = [f"The checkpoint {base.path} is not of this {name}{f' (it was fitted as {kind})' if kind else ''}."]
    if missing:
        lines.append(f"  The model has, the checkpoint has not: {missing[:5]}")
    if extra:
        lines.append(f"  The checkpoint has, the model has not: {extra[:5]}")
    shapes = [
        f"{k} {list(stored[k])} instead of {list(shape)}"
        for k, shape in expected.items()
        if k in stored and shape != stored[k]
    ]
    if shapes:
        lines.append(f"  Shapes: {'; '.join(shapes[:5])}")
    lines.append("  Name the checkpoint of this model with --checkpoint, or run `ifloo fit` with this one.")
    return "\n".join(lines)
