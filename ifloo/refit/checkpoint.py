"""Checkpoints of base models: fitting and writing one, reading it back, restoring its weights with a check."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ifloo.data import AdaptedData, FitRecord, unwrap_data
from ifloo.data.fit_record import KEY
from ifloo.data.protocol import AttributionData
from ifloo.errors import InputError, WorkError, first_sentence, summarise
from ifloo.minimize.newton_cg import FitEnd
from ifloo.models import SampleLossModule, unwrap
from ifloo.models.lightning_classes import defines, is_data_module
from ifloo.models.module import callbacks_of
from ifloo.models.run_state import RunState, attached, stand_in_trainer
from ifloo.objective.user_code import user_code
from ifloo.refit.checkpoint_objects import described, has_weights
from ifloo.refit.checkpoint_parts import SECTION, refuse_malformed
from ifloo.refit.fit_termination import fit_unless_terminated
from ifloo.refit.newton_finish import NewtonFinish
from ifloo.refit.own_data import OwnData
from ifloo.refit.state_difference import state_difference
from ifloo.refit.trainer_settings import TrainerSettings
from ifloo.store import JSON, replacing, sha256_of_tensors

_TRUST = (
    "--trust_checkpoint reads it as it is, and so runs code that the file names: give it only for a file whose "
    "origin you trust. Or leave the objects out when you write it: self.save_hyperparameters(ignore=[...])."
)
_NO_CHECKPOINT = (
    "It is no Lightning checkpoint (it has no 'state_dict'): torch.save of a module writes the module itself. Name a "
    "file that trainer.save_checkpoint or ModelCheckpoint wrote."
)


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
        content: Everything in the file, for the hooks that read more than weights.
    """

    path: Path
    state: Mapping[str, Tensor]
    model: dict[str, object]
    data: dict[str, object]
    record: dict[str, Any]
    trained_on: FitRecord | None = None
    content: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def foreign(self) -> bool:
        """Whether a Trainer of the user's own wrote the file, without the settings of its fit."""
        return SECTION not in self.content

    @cached_property
    def run_state(self) -> RunState:
        """State of the run that wrote the checkpoint, with the settings of its Trainer as far as they are known.

        Raises:
            InputError: If the file holds it in another form than Lightning writes.
        """
        known = self.record.get("given", self.record.get("recipe", {}))
        try:
            return RunState.from_checkpoint({**self.content, "state_dict": self.state}, known)
        except Exception as error:  # of a file that may hold anything in their place
            raise InputError(
                f"{self.path}: loops, optimizer_states or lr_schedulers are not as Lightning writes them: "
                f"{type(error).__name__}: {error}.\n  Remove these keys from the file, or name another checkpoint."
            ) from error

    def restore_data(self, datamodule: L.LightningDataModule) -> None:
        """Hands a data module, after its set-up, the state that it saved in the checkpoint, as a Trainer does."""
        owners = (type(datamodule), type(unwrap_data(datamodule)))
        saved = [self.content[one.__qualname__] for one in owners if one.__qualname__ in self.content]
        if saved:
            datamodule.load_state_dict(saved[0])

    def restore(self, module: L.LightningModule, trainer: L.Trainer | None = None) -> None:
        """Copies the weights into a module, after its `on_load_checkpoint` has seen the whole checkpoint.

        Args:
            module: Module whose layers are made.
            trainer: Trainer that the hooks of the module may read; None for an idle one in the state of the run.

        Raises:
            InputError: If the checkpoint is of another model, or its tensors have other shapes.
        """
        owner = unwrap(module)
        content = {**self.content, "state_dict": dict(self.state)}
        running = attached(owner, trainer or stand_in_trainer(self.run_state), changing=True)
        with running, user_code(f"on_load_checkpoint of {type(owner).__name__}"):
            owner.on_load_checkpoint(content)
        if difference := state_difference(module, content["state_dict"], owner.strict_loading):
            kind = self.record.get("model_class")
            raise InputError(
                f"The checkpoint {self.path} is not of this {type(owner).__name__}"
                f"{f' (it was fitted as {kind})' if kind else ''}.\n{difference}\n"
                "  Name the checkpoint of this model with --checkpoint, or run `ifloo fit` with this one."
                f"{_of_hooks(owner)}"
            )
        module.load_state_dict(content["state_dict"], strict=owner.strict_loading)


def _of_hooks(owner: L.LightningModule) -> str:
    """Returns a line for the message on hooks of a module that may make layers or buffers in a fit alone."""
    hooks = [name for name in ("on_fit_start", "on_train_start") if defines(owner, name)]
    if isinstance(owner, SampleLossModule):  # its own hook makes nothing
        hooks = [name for name in hooks if name != "on_train_start"]
    if not hooks:
        return ""
    return f"\n  If {summarise(hooks)} makes layers or buffers: make them in __init__, setup or configure_model."


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
    if isinstance(datamodule, AdaptedData):
        _fit_adapted(trainer, module, datamodule)
    else:
        fit_unless_terminated(trainer, module, datamodule)
    minimum = finish.minimum
    if minimum is None or not trainer.state.finished:
        raise WorkError("The fit was interrupted; no checkpoint was written.")
    recorder.record |= {"J": minimum.value, "grad_norm": minimum.grad_norm, "fingerprint": datamodule.fingerprint()}
    with replacing(path) as file:
        trainer.save_checkpoint(file.name, weights_only=False)
    return minimum


def _fit_adapted(trainer: L.Trainer, module: L.LightningModule, datamodule: AdaptedData) -> None:
    """Fits on the loaders of an adapter, while the Trainer shows the author's own data module."""
    own = unwrap_data(datamodule)
    callbacks_of(trainer).append(OwnData(own if is_data_module(own) else None))
    datamodule.prepare_data()
    datamodule.setup("fit")
    validation = datamodule.val_dataloader() if defines(unwrap(module), "validation_step") else []
    fit_unless_terminated(trainer, module, datamodule.train_dataloader(), None if validation == [] else validation)
    trainer.datamodule = datamodule  # type: ignore[attr-defined]  # its settings are part of a checkpoint


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


def load_base(path: Path, *, trusted: bool = False) -> BaseCheckpoint:
    """Reads a checkpoint that `fit_base` wrote, without executing code from it unless it is trusted.

    Args:
        path: Checkpoint file.
        trusted: Whether objects that are no plain values, such as a net among the hyper-parameters of a module, are
            read, too, which runs code that the file names.

    Raises:
        InputError: If the file is missing, unreadable, or not a checkpoint of ifloo.
    """
    if not path.is_file():
        raise InputError(f"There is no checkpoint at {path}.\n  Run `ifloo fit` first, or name one with --checkpoint.")
    content = _read(path, "Run `ifloo fit` again.", trusted)
    if not isinstance(content, dict) or SECTION not in content or "state_dict" not in content:
        raise InputError(
            f"{path} was not written by `ifloo fit` (it has no section {SECTION!r}). Run `ifloo fit` first."
        )
    return _base(path, content)


def load_foreign(
    path: Path, seed: int, settings: Mapping[str, Any], *, trusted: bool = False, repeated: bool = False
) -> BaseCheckpoint:
    """Reads a Lightning checkpoint of any Trainer, without executing code from it unless it is trusted.

    Such a checkpoint does not record data, seed and Trainer settings of the fit: refits use the seed and the settings
    given here. A checkpoint that `fit_base` wrote keeps those it records.

    Args:
        path: Checkpoint file.
        seed: Random seed of the refits.
        settings: Fields of `TrainerSettings`. Defaults of those left out: one epoch (with `max_steps`, as many epochs
            as these steps take), float64 if the weights have it, else Lightning's defaults.
        trusted: Whether objects that are no plain values are read, too, which runs code that the file names.
        repeated: Whether refits repeat the whole fit (`init = cold`): they have by default as many epochs as it ran.

    Raises:
        InputError: If the file is missing, unreadable, or not a Lightning checkpoint.
    """
    if not path.is_file():
        raise InputError(f"There is no checkpoint at {path}.\n  Name one that a Lightning Trainer wrote (--ckpt_path).")
    content = _read(path, _TRUST, trusted)
    if not isinstance(content, dict) or "state_dict" not in content:
        raise InputError(
            f"{path} is no Lightning checkpoint (it has no 'state_dict').\n"
            "  Name one that trainer.save_checkpoint or ModelCheckpoint wrote."
        )
    if SECTION in content:
        return _base(path, content)
    defaults: dict[str, Any] = {"max_epochs": -1} if "max_steps" in settings else {}
    base = _base(path, content, {})
    if repeated and "max_steps" not in settings and (epochs := epochs_run(content)) is not None:
        defaults["max_epochs"] = epochs
    if any(v.dtype is torch.float64 for v in base.state.values()):
        defaults["precision"] = "64-true"
    identity = TrainerSettings(**{**defaults, **settings}).identity_settings()
    record = {"model_class": None, "seed": seed, "fingerprint": None, "recipe": identity, "given": dict(settings)}
    return _base(path, content, record)


def epochs_run(content: Mapping[str, Any]) -> int | None:
    """Returns how many epochs the run of a checkpoint had begun when it was written; None if the file does not tell."""
    loops = content.get("loops")
    if not isinstance(loops, Mapping) or "fit_loop" not in loops:
        return None
    return RunState.from_checkpoint({"loops": loops, "epoch": content.get("epoch", 0)}).epoch + 1


def _read(path: Path, remedy: str, trusted: bool = False) -> object:
    """Reads a file.

    Raises:
        InputError: If it is damaged, or holds objects and is not trusted.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=not trusted)
    except Exception as error:  # unpickling a damaged file may raise any exception
        if not trusted and (objects := described(path)) is not None:
            remedy = remedy if has_weights(path) else _NO_CHECKPOINT  # no reading makes a checkpoint of it
            raise InputError(f"{path} holds more than plain values and tensors: {objects}.\n  {remedy}") from error
        raise InputError(
            f"{path} cannot be read as a checkpoint: {_reason(error)}.\n"
            f"  The file is damaged or holds more than weights and plain values. {remedy}"
        ) from error


def _base(path: Path, content: dict[str, Any], record: dict[str, Any] | None = None) -> BaseCheckpoint:
    """Returns the checkpoint with its parts as they are used.

    Args:
        path: File.
        content: Content of the file.
        record: Settings and measurements of the fit; None for the section that the file has.

    Raises:
        InputError: If a part is of another type than Lightning and `fit_base` write.
    """
    refuse_malformed(path, content)
    kept: dict[str, Any] = content[SECTION] if record is None else record
    model, data = content.get("hyper_parameters") or {}, content.get("datamodule_hyper_parameters") or {}
    return BaseCheckpoint(
        path, content["state_dict"], _settings(model), _settings(data), kept, FitRecord.read(content), content
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
