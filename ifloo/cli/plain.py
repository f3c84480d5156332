"""Plain modules and plain data on the command line: what makes them meet the contract."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning as L

from ifloo.data import AdaptedData, serves_attribution
from ifloo.errors import InputError
from ifloo.models import Adapted, SampleLossModule
from ifloo.store import JSON


@dataclass(frozen=True)
class Adaptation:
    """How a LightningModule that is no SampleLossModule states its losses.

    Attributes:
        sample_losses: dotted name of a function (model, batch) -> [b], nats, unreduced, without penalty; null: the
            module's training_step is run on batches of one.
        penalty: dotted name of a function (model) -> [], nats; null: none beside `l2`.
        l2: λ of the penalty ½λ‖θ‖²; what an optimizer's weight_decay that adds λθ to the gradient amounts to.
        still: fits take no step of the module's own optimizer and leave everything to the Newton finish: for warm
            refits of a model at a minimum, with `finish.after always`.
    """

    sample_losses: str | None = None
    penalty: str | None = None
    l2: float = 0.0
    still: bool = False

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
        losses = dotted(self.sample_losses, "adapt.sample_losses") if self.sample_losses else None
        penalty = dotted(self.penalty, "adapt.penalty") if self.penalty else None
        return Adapted(module, losses, penalty, self.l2, self.still)

    def compared(self) -> dict[str, JSON]:
        """The part of it that changes numbers."""
        return {"sample_losses": self.sample_losses, "penalty": self.penalty, "l2": self.l2}


def dotted(path: str, setting: str) -> Callable[..., Any]:
    """The function of this name.

    Raises:
        InputError: there is none; the text says how far the name leads.
    """
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name) if module else None
    except (ImportError, AttributeError) as error:
        raise InputError(_no_function(path, setting, str(error))) from error
    if not callable(found):
        what = "it names no module" if found is None else f"it is a {type(found).__name__}"
        raise InputError(_no_function(path, setting, what))
    return found


def data_of(datamodule: Any) -> Any:
    """The data module as the commands need it."""
    return datamodule if serves_attribution(datamodule) else AdaptedData(datamodule)


def _no_function(path: str, setting: str, why: str) -> str:
    return (
        f"{setting} = {path} is no function that can be called: {why}.\n"
        "  Give it as module.function; modules are looked for in this folder and among what is installed."
    )
