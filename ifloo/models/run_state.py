"""State of a run when it ended, and an idle Trainer that answers with it while samples are scored."""

from __future__ import annotations

import copy
import logging
import math
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus
from torch import Tensor

from ifloo.models.idle_strategy import IdleStrategy, Saved
from ifloo.models.lightning_classes import defines, is_data_module, is_module
from ifloo.objective.counterparts import counterparts
from ifloo.objective.silence import logging_to, silenced


@dataclass(frozen=True)
class RunState:
    """What a module can read of its Trainer, as at the end of the fit.

    Attributes:
        epoch: Index of the last training epoch that ran.
        global_step: Number of optimizer steps.
        max_epochs: Largest number of epochs; -1 sets no limit.
        max_steps: Largest number of optimizer steps; -1 sets no limit.
        precision: Precision by Lightning's name, such as `64-true`.
        accumulate_grad_batches: Number of batches per optimizer step.
        gradient_clip_val: Largest gradient norm or entry; None does not clip.
        gradient_clip_algorithm: Kind of clipping, `norm` or `value`; None means `norm`.
        batches: Number of batches in an epoch; None: that of the training loader.
        world_size: Number of processes of the fit.
        optimizers: State of each optimizer without values per weight: learning rates and the like.
        schedulers: State of each learning rate scheduler.
        part_of_data: Settings that train on part of the data, or on others in later epochs: `limit_train_batches`,
            `overfit_batches`, `reload_dataloaders_every_n_epochs`.
    """

    epoch: int = 0
    global_step: int = 0
    max_epochs: int = 1
    max_steps: int = -1
    precision: str = "32-true"
    accumulate_grad_batches: int = 1
    gradient_clip_val: float | None = None
    gradient_clip_algorithm: str | None = None
    batches: int | float | None = None
    world_size: int = 1
    optimizers: tuple[Saved, ...] = field(default=(), hash=False)
    schedulers: tuple[Saved, ...] = field(default=(), hash=False)
    part_of_data: tuple[int | float | None, int | float, int] = (None, 0.0, 0)

    @classmethod
    def from_checkpoint(cls, content: Mapping[str, Any], settings: Mapping[str, Any] | None = None) -> RunState:
        """Reads the state of the run that wrote a Lightning checkpoint.

        Args:
            content: Content of the checkpoint.
            settings: Settings of the Trainer by name, which a checkpoint of Lightning's own does not hold. Without
                `max_epochs` the epochs that ran count as all.
        """
        known = {**content.get("ifloo", {}).get("recipe", {}), **(settings or {})}
        loop = content.get("loops", {}).get("fit_loop", {})
        epoch = _last_epoch(loop.get("epoch_progress", {}).get("current", {}).get("ready"), content.get("epoch", 0))
        double = any(v.dtype is torch.float64 for v in content.get("state_dict", {}).values() if isinstance(v, Tensor))
        last_batch = loop.get("epoch_loop.batch_progress", {})
        return cls(
            epoch=epoch,
            global_step=content.get("global_step", 0),
            max_epochs=_count(known.get("max_epochs"), epoch + 1),
            max_steps=_count(known.get("max_steps"), -1),
            precision=known.get("precision") or ("64-true" if double else "32-true"),
            accumulate_grad_batches=_count(known.get("accumulate_grad_batches"), 1),
            gradient_clip_val=known.get("gradient_clip_val"),
            gradient_clip_algorithm=known.get("gradient_clip_algorithm"),
            batches=last_batch["current"]["ready"] if last_batch.get("is_last_batch") else None,
            optimizers=tuple(_without_values(one) for one in content.get("optimizer_states", ())),
            schedulers=tuple(copy.deepcopy(one) for one in content.get("lr_schedulers", ())),
        )

    @classmethod
    def of_trainer(cls, trainer: L.Trainer) -> RunState:
        """Reads the state of a Trainer, during a fit or after it."""
        algorithm = trainer.gradient_clip_algorithm
        batches = trainer.num_training_batches
        return cls(
            epoch=_last_epoch(trainer.fit_loop.epoch_progress.current.ready, trainer.current_epoch),
            global_step=trainer.global_step,
            max_epochs=_count(trainer.max_epochs, -1),
            max_steps=trainer.max_steps,
            precision=str(trainer.precision),
            accumulate_grad_batches=trainer.accumulate_grad_batches,
            gradient_clip_val=trainer.gradient_clip_val,
            gradient_clip_algorithm=algorithm.value if isinstance(algorithm, Enum) else algorithm,
            batches=batches if batches != float("inf") or trainer.train_dataloader is not None else None,
            world_size=trainer.world_size,
            optimizers=tuple(_without_values(one.state_dict()) for one in trainer.optimizers),
            schedulers=tuple(copy.deepcopy(one.scheduler.state_dict()) for one in trainer.lr_scheduler_configs),
            part_of_data=part_of_data(trainer),
        )


def part_of_data(trainer: L.Trainer) -> tuple[int | float, int | float, int]:
    """Returns the settings of a Trainer that train on part of the data, or on others: limit, overfit, reload."""
    reload: int = trainer.reload_dataloaders_every_n_epochs  # type: ignore[attr-defined]  # Lightning sets them undeclared
    return trainer.limit_train_batches, trainer.overfit_batches, reload  # type: ignore[attr-defined]


def batches_in(loader: object) -> int | float:
    """Returns the number of batches of a loader; infinity for a stream, as in Lightning, and where there is none."""
    try:
        return len(loader)  # type: ignore[arg-type]  # tried, as Lightning does
    except (TypeError, NotImplementedError):
        return math.inf


class StandInTrainer(L.Trainer):
    """A Trainer that runs nothing: what a module or data module reads of it is the state of a finished fit.

    It logs, prints and writes nothing, `training` is False, and its optimizers, made by the module's own
    `configure_optimizers` when they are read, hold stand-ins for the weights.

    Attributes:
        run_state: State that it answers with.
        idle_strategy: Strategy that makes optimizers on first use.
        datamodule: Data module of the fit, if there is one.
    """

    def __init__(self, state: RunState, datamodule: L.LightningDataModule | None, train_loader: object) -> None:
        """Builds the Trainer without a word on devices."""
        self.run_state, self._train_loader = state, train_loader
        self.idle_strategy = IdleStrategy(state.optimizers, state.schedulers)
        with _no_notes():
            super().__init__(
                accelerator="cpu",
                strategy=self.idle_strategy,
                devices=1,
                logger=_SilentLogger(),
                callbacks=[_SilentBar()],
                max_epochs=state.max_epochs,
                max_steps=state.max_steps,
                accumulate_grad_batches=state.accumulate_grad_batches,
                gradient_clip_val=state.gradient_clip_val,
                gradient_clip_algorithm=state.gradient_clip_algorithm,
                enable_checkpointing=False,
                enable_model_summary=False,
                plugins=[LightningEnvironment()],
                default_root_dir=os.getcwd(),
            )
        self.state.fn, self.state.status = TrainerFn.FITTING, TrainerStatus.FINISHED
        self.datamodule = datamodule

    @property
    def current_epoch(self) -> int:
        return self.run_state.epoch

    @property
    def global_step(self) -> int:
        return self.run_state.global_step

    @property
    def world_size(self) -> int:
        return self.run_state.world_size

    @property
    def precision(self) -> str:  # type: ignore[override]  # Lightning lists the names
        return self.run_state.precision

    @property
    def is_last_batch(self) -> bool:
        return True

    @property
    def log_dir(self) -> str:
        return self.default_root_dir

    @cached_property
    def train_dataloader(self) -> object:
        """Training loader: the one given, else that of the data module or module; None if there is none."""
        return self._train_loader if self._train_loader is not None else self._loader_of("train_dataloader")

    @cached_property
    def val_dataloaders(self) -> object:
        """Validation loaders of the data module or module; None if there are none."""
        return self._loader_of("val_dataloader")

    @property
    def num_training_batches(self) -> int | float:
        if self.run_state.batches is not None:
            return self.run_state.batches
        return batches_in(self.train_dataloader)

    @property
    def estimated_stepping_batches(self) -> int | float:
        state, batches = self.run_state, self.num_training_batches
        if state.max_epochs == -1:
            return math.inf if state.max_steps == -1 else state.max_steps
        if batches == math.inf:
            return state.max_steps
        steps = math.ceil(batches / state.accumulate_grad_batches) * max(state.max_epochs, 1)
        return steps if state.max_steps == -1 else min(steps, state.max_steps)

    def _loader_of(self, name: str) -> object:
        owner = self.datamodule if self.datamodule is not None else self.lightning_module
        if owner is None or not defines(owner, name):
            return None
        with attached(owner, self, changing=True):
            return owner.train_dataloader() if name == "train_dataloader" else owner.val_dataloader()

    def __deepcopy__(self, memo: dict[int, object]) -> StandInTrainer:
        """Returns itself: a copy of a module need not copy the data."""
        return self

    def __reduce__(self) -> tuple[object, ...]:
        """Leaves data and loaders behind when a module travels to another process."""
        return stand_in_trainer, (self.run_state,)


def stand_in_trainer(
    state: RunState,
    datamodule: L.LightningDataModule | None = None,
    train_loader: object = None,
    model: L.LightningModule | None = None,
) -> StandInTrainer:
    """Builds an idle Trainer that answers as at the end of the fit; see `attached`.

    Args:
        state: State of the fit.
        datamodule: Data module of the fit, as the user wrote it.
        train_loader: Training loader; by default that of the data module or module, asked when it is read.
        model: Module whose optimizers are asked for; by default the first that is attached. Give it where the module
            is attached within a functional call, which hides which parameters are trained.
    """
    trainer = StandInTrainer(state, datamodule, train_loader)
    if model is not None:
        trainer.idle_strategy.describe(model)
    return trainer


@contextmanager
def attached(owner: object, trainer: L.Trainer, *, changing: bool = False) -> Generator[None, None, None]:
    """Attaches a Trainer to a module with its children, or to a data module, until exit; logging is off meanwhile.

    Args:
        owner: Module or data module of either Lightning package.
        trainer: Trainer that it reads.
        changing: Whether hooks run that are meant to change the module, such as `setup`; otherwise its state, like that
            of metrics and counters, is as before afterwards.
    """
    if is_data_module(owner):
        before, owner.trainer = owner.trainer, trainer
        try:
            yield
        finally:
            owner.trainer = before
        return
    assert is_module(owner)
    classes = counterparts(L.LightningModule)
    modules = [(m, m._trainer) for m in owner.modules() if isinstance(m, classes)]
    idle = trainer.idle_strategy if isinstance(trainer, StandInTrainer) else None
    outer = idle.enter(owner) if idle else None
    for module, _ in modules:
        module._trainer = trainer
    try:
        with logging_to(owner, _no_log, _no_log) if changing else silenced(owner):
            yield
    finally:
        for module, own in modules:
            module._trainer = own
        if idle:
            idle.enter(outer)


def _no_log(*_: object, **__: object) -> None:
    """Replaces `self.log` outside a fit."""


class _SilentLogger(DummyLogger):
    """Logger whose methods and `experiment` accept everything and write nothing."""

    @property
    def experiment(self) -> Any:  # answers to every name that the experiment of any logger has
        return _Silent()


class _Silent:
    """An object that answers every call, attribute and item with itself."""

    def __getattr__(self, name: str) -> _Silent:
        if name.startswith("__"):  # asked by copy and pickle
            raise AttributeError(name)
        return self

    def __call__(self, *_: object, **__: object) -> _Silent:
        return self

    def __getitem__(self, key: object) -> _Silent:
        return self

    def __setitem__(self, key: object, value: object) -> None: ...

    def __setattr__(self, name: str, value: object) -> None: ...

    def __enter__(self) -> _Silent:
        return self

    def __exit__(self, *_: object) -> None: ...


class _SilentBar(ProgressBar):
    """Progress bar to which `self.print` writes, and which shows nothing."""

    @property
    def is_enabled(self) -> bool:
        return True

    def disable(self) -> None: ...

    def enable(self) -> None: ...

    def print(self, *_: object, **__: object) -> None: ...


@contextmanager
def _no_notes() -> Generator[None, None, None]:
    """Hides Lightning's notes on devices and tips."""
    # The one that was imported last names the logger of both.
    packages, parts = ("lightning.pytorch", "pytorch_lightning"), ("", ".utilities.rank_zero", ".accelerators")
    chatty = [logging.getLogger(package + part) for package in packages for part in parts]
    levels = [one.level for one in chatty]
    for one in chatty:
        one.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for one, level in zip(chatty, levels, strict=True):
            one.setLevel(level)


def _last_epoch(started: int | None, recorded: int) -> int:
    """Returns the index of the last epoch that ran: one less than those started, where their number is known."""
    return recorded if started is None else max(started - 1, 0)


def _count(value: int | None, default: int) -> int:
    return default if value is None else value


def _without_values(optimizer: Saved) -> Saved:
    """Returns the state of an optimizer without its values per weight, such as moments."""
    return {"state": {}, "param_groups": copy.deepcopy(optimizer["param_groups"])}
