"""Plain modules and plain data on the command line: what makes them meet the contract."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import lightning as L
from torch import Tensor

from ifloo.data import AdaptedData, AttributionData
from ifloo.errors import InputError
from ifloo.models import Adapted, AdaptedOutputs, LossesOfOutputs, SampleLossModule
from ifloo.store import JSON

_MISSING = object()


@dataclass(frozen=True)
class Adaptation:
    """How a LightningModule that is no SampleLossModule states its losses.

    Attributes:
        sample_losses: dotted name of a function (model, batch) -> [b], nats, unreduced, without penalty; null: the
            module's training_step is run on batches of one.
        outputs: dotted name of a function (model, batch) -> [b, ...], such as logits, in place of sample_losses and
            together with output_losses: Gauss-Newton and predicted classes need them.
        output_losses: dotted name of a function (outputs, batch) -> [b], nats, convex in the outputs.
        penalty: dotted name of a function (model) -> [], nats; null: none beside `l2`.
        l2: λ of the penalty ½λ‖θ‖²; what an optimizer's weight_decay that adds λθ to the gradient amounts to.
        still: fits take no step of the module's own optimizer and leave everything to the Newton finish: for warm
            refits of a model at a minimum, with `finish.after always`.
    """

    sample_losses: str | None = None
    outputs: str | None = None
    output_losses: str | None = None
    penalty: str | None = None
    l2: float = 0.0
    skip_training: bool = False

    def of(self, module: L.LightningModule) -> SampleLossModule:
        """The module under the contract.

        Raises:
            InputError: a function that is not there, or settings for a module that states its losses itself.
        """
        if isinstance(module, SampleLossModule):
            if self != Adaptation():
                raise InputError(
                    f"{type(module).__name__} states its losses and its penalty itself; the settings adapt.* are for "
                    "modules that do not.\n  Leave them out."
                )
            return module
        penalty = dotted(self.penalty, "adapt.penalty") if self.penalty else None
        if self.outputs or self.output_losses:
            return AdaptedOutputs(module, self._of_outputs(), penalty, self.l2, self.skip_training)
        losses = dotted(self.sample_losses, "adapt.sample_losses") if self.sample_losses else None
        return Adapted(module, losses, penalty, self.l2, self.skip_training)

    def _of_outputs(self) -> LossesOfOutputs:
        if self.sample_losses or not (self.outputs and self.output_losses):
            raise InputError(
                f"The losses of a sample are stated by adapt.sample_losses alone, or by adapt.outputs and "
                f"adapt.output_losses together; got sample_losses {self.sample_losses}, outputs {self.outputs}, "
                f"output_losses {self.output_losses}.\n  Give one of the two."
            )
        return LossesOfOutputs(dotted(self.outputs, "adapt.outputs"), dotted(self.output_losses, "adapt.output_losses"))

    def identity_settings(self) -> dict[str, JSON]:
        """The part of it that changes numbers."""
        parts = {"outputs": self.outputs, "output_losses": self.output_losses} if self.outputs else {}
        return {"sample_losses": self.sample_losses, **parts, "penalty": self.penalty, "l2": self.l2}


def dotted(path: str, setting: str) -> Callable[..., Tensor]:
    """The function of this name.

    Raises:
        InputError: there is none; the text says how far the name leads.
    """
    module, _, name = path.rpartition(".")
    if not module:
        raise InputError(_no_function(path, setting, "it names no module"))
    try:
        found = getattr(importlib.import_module(module), name, _MISSING)
    except Exception as error:  # whatever a file of the user's raises when it is imported
        raise InputError(_no_function(path, setting, str(error))) from error
    if not callable(found):
        missing = f"module {module!r} has no attribute {name!r}"
        raise InputError(
            _no_function(path, setting, missing if found is _MISSING else f"it is a {type(found).__name__}")
        )
    function: Callable[..., Tensor] = found
    return function


def data_of(datamodule: L.LightningDataModule) -> AttributionData:
    """The data module as the commands need it."""
    return datamodule if isinstance(datamodule, AttributionData) else AdaptedData(datamodule)


def _no_function(path: str, setting: str, why: str) -> str:
    return (
        f"{setting} = {path} is no function that can be called: {why}.\n"
        "  Give it as module.function; modules are looked for in this folder and among what is installed."
    )
