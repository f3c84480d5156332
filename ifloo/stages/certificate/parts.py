"""Parts of a training step that evaluation mode, full precision or the loss of a sample may lack."""

from __future__ import annotations

from collections.abc import Iterator

import lightning as L
from torch import nn

from ifloo.errors import summarise
from ifloo.models import Adapted, SampleLossModule
from ifloo.models.lightning_classes import defines
from ifloo.models.run_state import RunState
from ifloo.objective.certificate import Part
from ifloo.objective.layers import BATCH_HOOKS, is_random

GRADIENT_HOOKS = ("on_before_backward", "backward", "on_after_backward", "on_before_optimizer_step", "optimizer_step")
START_HOOKS = ("on_fit_start", "on_train_start", "on_train_epoch_start")
HALVES = ("16-mixed", "bf16-mixed", "16-true", "bf16-true", "transformer-engine", "transformer-engine-float16")


def parts_of(
    module: L.LightningModule,
    datamodule: L.LightningDataModule | None,
    state: RunState,
    hooked: bool,
    started: bool,
) -> dict[Part, str]:
    """Returns the parts that a training step of this module has, with a noun phrase for each.

    Args:
        module: The user's module, its layers in the modes of training.
        datamodule: Data module of the fit.
        state: State of the run.
        hooked: Whether a weight has a hook on its gradient.
        started: Whether hooks for the start of a fit are called on the copy.
    """
    parts: dict[Part, str] = {}
    kinds = {_kind(layer) for layer in module.modules() if layer.training}
    if Part.BATCH_STATISTICS in kinds:
        parts[Part.BATCH_STATISTICS] = Part.BATCH_STATISTICS.value
    if Part.DROPOUT in kinds:
        parts[Part.DROPOUT] = Part.DROPOUT.value
    parts[Part.TRAINING_FLAG] = "a branch on self.training or trainer.training"
    if state.precision in HALVES:
        parts[Part.PRECISION] = f"precision {state.precision}"
    if on_batches := [*_defined(module, BATCH_HOOKS), *(_defined(datamodule, BATCH_HOOKS) if datamodule else ())]:
        parts[Part.BATCH_HOOKS] = f"batch hooks ({summarise(list(dict.fromkeys(on_batches)))})"
    if (state.epoch, state.global_step) != (0, 0):
        parts[Part.MOMENT] = f"epoch {state.epoch} or step {state.global_step} in the loss"
    hooks = [name for name in _defined(module, START_HOOKS) if not _is_of_ifloo(module, name)]
    if started and hooks:
        parts[Part.STATE] = f"what {summarise(hooks)} set{'s' if len(hooks) == 1 else ''}"
    gradients = [*_defined(module, GRADIENT_HOOKS), *(["hooks on weights"] if hooked else [])]
    if gradients:
        parts[Part.GRADIENT_HOOKS] = f"gradient masks ({summarise(gradients)})"
    return parts


def _is_of_ifloo(module: L.LightningModule, name: str) -> bool:
    """Whether a hook is that of the base classes here, which only check settings of a fit."""
    own = (SampleLossModule.on_train_start, Adapted.on_train_start)
    return name == "on_train_start" and type(module).on_train_start in own


def modes_without(module: nn.Module, without: frozenset[Part]) -> list[nn.Module]:
    """Returns the layers in training mode that change to evaluation mode when these parts are taken away."""
    return [layer for layer in module.modules() if layer.training and _kind(layer) in without]


def _kind(layer: nn.Module) -> Part:
    """Returns what evaluation mode takes away from a layer, regardless of its children."""
    if any(name.startswith("running_") for name, _ in layer.named_buffers(recurse=False)):
        return Part.BATCH_STATISTICS
    if "drop" in type(layer).__name__.lower() or is_random(layer):
        return Part.DROPOUT
    return Part.TRAINING_FLAG


def _defined(owner: L.LightningModule | L.LightningDataModule, names: tuple[str, ...]) -> Iterator[str]:
    return (name for name in names if defines(owner, name))
