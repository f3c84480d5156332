"""The base model: fitted, written as one checkpoint, read back and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from ifloo.data.protocol import AttributionData
from ifloo.errors import InputError, WorkError, first_sentence
from ifloo.minimize.newton_cg import FitEnd
from ifloo.models import unwrap
from ifloo.models.module import callbacks_of
from ifloo.refit.newton_finish import NewtonFinish
from ifloo.refit.recipe import TrainerSettings
from ifloo.store import JSON, replacing, sha256_of_tensors
from ifloo.termination import sigterm_unwinds

SECTION = "ifloo"


@dataclass(frozen=True)
class BaseCheckpoint:
    """A checkpoint on disk.

    Attributes:
        path: where it was read from.
        state: the weights by name.
        model: the model's hyper-parameters.
        data: the data module's.
        record: what `fit_base` was told and measured: seed, recipe, classes, data fingerprint, ‖∇J‖.
    """

    path: Path
    state: Mapping[str, Tensor]
    model: dict[str, object]
    data: dict[str, object]
    record: dict[str, Any]

    def restore(self, module: L.LightningModule) -> None:
        """Puts the weights into a module.

        Raises:
            InputError: the checkpoint is of another model or of another shape.
        """
        wanted = {k: tuple(v.shape) for k, v in module.state_dict().items()}
        found = {k: tuple(v.shape) for k, v in self.state.items()}
        if wanted != found:
            raise InputError(_of_another_model(self, type(unwrap(module)).__name__, wanted, found))
        module.load_state_dict(self.state, strict=True)


def fit_base(
    module: L.LightningModule,
    datamodule: AttributionData,
    trainer: L.Trainer,
    finish: NewtonFinish,
    path: Path,
    record: Mapping[str, JSON],
) -> FitEnd:
    """Fits through the Trainer (whose callbacks include `finish`) and writes the checkpoint, whole or not at all.

    Raises:
        WorkError: the fit did not converge or the checkpoint could not be written.
        Terminated: the process received SIGTERM meanwhile.
    """
    recorder = _Recorder(dict(record))
    callbacks_of(trainer).append(recorder)
    assert isinstance(datamodule, L.LightningDataModule)
    with sigterm_unwinds():
        trainer.fit(module, datamodule=datamodule)
    minimum = finish.minimum
    if minimum is None or not trainer.state.finished:
        raise WorkError("The fit was interrupted; no checkpoint was written.")
    recorder.record |= {"J": minimum.value, "grad_norm": minimum.grad_norm, "fingerprint": datamodule.fingerprint()}
    with replacing(path) as file:
        trainer.save_checkpoint(file.name, weights_only=False)
    return minimum


class _Recorder(L.Callback):
    """Adds ifloo's own section to the checkpoint: plain values only, so that it loads with weights_only=True."""

    def __init__(self, record: dict[str, Any]) -> None:
        self.record = record

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, object]
    ) -> None:
        checkpoint[SECTION] = self.record


def load_base(path: Path) -> BaseCheckpoint:
    """Reads a checkpoint that `fit_base` wrote; nothing in it is executed.

    Raises:
        InputError: the file is missing, unreadable, or no checkpoint of ifloo.
    """
    if not path.is_file():
        raise InputError(f"There is no checkpoint at {path}.\n  Run `ifloo fit` first, or name one with --checkpoint.")
    content = _read(path, "Run `ifloo fit` again.")
    if not isinstance(content, dict) or SECTION not in content or "state_dict" not in content:
        raise InputError(
            f"{path} was not written by `ifloo fit` (it has no section {SECTION!r}). Run `ifloo fit` first."
        )
    return _base(path, content, content[SECTION])


def load_foreign(path: Path, seed: int, said: Mapping[str, Any]) -> BaseCheckpoint:
    """Reads a Lightning checkpoint of any Trainer; nothing in it is executed.

    It does not say on which data, with which seed and how the model was trained: refits have the seed given here, and
    the recipe that was said. A checkpoint of `fit_base` has its own.

    Args:
        path: of the file.
        seed: of refits.
        said: fields of a `Recipe`. Left out: one epoch (or, where steps are limited, as many as these take), the
            precision that weights of 64 bits show, else Lightning's defaults.

    Raises:
        InputError: the file is missing, unreadable, or no Lightning checkpoint.
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
    found: dict[str, Any] = {"max_epochs": -1} if "max_steps" in said else {}
    base = _base(path, content, {})
    if any(v.dtype is torch.float64 for v in base.state.values()):
        found["precision"] = "64-true"
    recipe = TrainerSettings(**{**found, **said}).identity_settings()
    record = {"model_class": None, "seed": seed, "fingerprint": None, "recipe": recipe, "said": dict(said)}
    return _base(path, content, record)


def _read(path: Path, remedy: str) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever unpickling meets
        raise InputError(
            f"{path} cannot be read as a checkpoint: {_reason(error)}.\n"
            f"  The file is damaged or holds more than weights and plain values. {remedy}"
        ) from error


def _base(path: Path, content: dict[str, Any], record: dict[str, Any]) -> BaseCheckpoint:
    model, data = content.get("hyper_parameters", {}), content.get("datamodule_hyper_parameters", {})
    return BaseCheckpoint(path, content["state_dict"], _settings(model), _settings(data), record)


def _reason(error: Exception) -> str:
    """The first sentence of what torch says, which may go on for a page or be one number."""
    sentence, kind = first_sentence(error), type(error).__name__
    return sentence if " " in sentence or sentence == kind else f"{kind} {sentence}"


def weights_sha256(module: L.LightningModule) -> str:
    """SHA-256 of the module's weights: the same tensors give the same text on every machine."""
    return sha256_of_tensors(dict(module.state_dict()))


def _settings(hyper_parameters: Mapping[str, object]) -> dict[str, object]:
    return {k: v for k, v in hyper_parameters.items() if not k.startswith("_")}


def _of_another_model(
    base: BaseCheckpoint, name: str, wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]
) -> str:
    missing, extra = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    kind = base.record.get("model_class")
    lines = [f"The checkpoint {base.path} is not of this {name}{f' (it was fitted as {kind})' if kind else ''}."]
    if missing:
        lines.append(f"  The model has, the checkpoint has not: {missing[:5]}")
    if extra:
        lines.append(f"  The checkpoint has, the model has not: {extra[:5]}")
    shapes = [
        f"{k} {list(found[k])} instead of {list(wanted[k])}" for k in wanted if k in found and wanted[k] != found[k]
    ]
    if shapes:
        lines.append(f"  Shapes: {'; '.join(shapes[:5])}")
    lines.append("  Name the checkpoint of this model with --checkpoint, or run `ifloo fit` with this one.")
    return "\n".join(lines)
