"""Settings that adapt a plain LightningModule and plain data to the contract."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L

from ifloo.data import AdaptedData, AttributionData
from ifloo.data.kept_samples import ReadSettings
from ifloo.data.sample_store import SHARE
from ifloo.errors import InputError
from ifloo.models import Adapted, AdaptedOutputs, LossesOfOutputs, SampleLossModule
from ifloo.models.lightning_classes import defines
from ifloo.objective.id_rule import IdSetting
from ifloo.store import JSON

_MISSING = object()


@dataclass(frozen=True)
class Adaptation:
    """Settings by which a LightningModule that is no SampleLossModule states its losses.

    Attributes:
        sample_losses: Dotted name of a function (model, batch) -> [b], nats, unreduced, without penalty; null: the
            module's training_step is run on batches of one.
        outputs: Dotted name of a function (model, batch) -> [b, ...], such as logits, in place of sample_losses and
            together with output_losses: Gauss-Newton and predicted classes need them.
        output_losses: Dotted name of a function (outputs, batch) -> [b], nats, convex in the outputs.
        penalty: Dotted name of a function (model) -> [], nats; null: no penalty beside `l2`.
        l2: λ of the penalty ½λ‖θ‖²; equals an optimizer's weight_decay that adds λθ to the gradient.
        skip_training: Whether fits take no step of the module's own optimizer, only the Newton steps that finish a fit:
            for warm refits of a model at a minimum, with `finish.after always`.
        draws: Number of draws of each training sample where the data are augmented: ℓ_i is the mean over them. Each is
            drawn under a seed of its own, the same in every pass and run.
        memory_share: Share of the available memory in which samples are kept once they are read; those beyond it are
            kept in a temporary file in the folder of results.
        ids: Ids of the samples. `auto`: key `idx` or `sample_index` of a batch where it is one unique whole number per
            sample, else the position in the dataset (through Subset: that of the dataset behind it). `third`: the third
            item of (x, y, id). `positions`: always the position.
        accept_objective: Whether scores are computed though the gradient of a training step differs from that of J for
            an unexplained reason; every output then carries the difference.
    """

    sample_losses: str | None = None
    outputs: str | None = None
    output_losses: str | None = None
    penalty: str | None = None
    l2: float = 0.0
    skip_training: bool = False
    draws: int = 1
    memory_share: float = SHARE
    ids: IdSetting = "auto"
    accept_objective: bool = False

    def of(self, module: L.LightningModule) -> SampleLossModule:
        """Returns the module under the contract.

        Raises:
            InputError: If a function does not exist, or the module states its losses itself.
        """
        if isinstance(module, SampleLossModule):
            if replace(self, draws=1, memory_share=SHARE, ids="auto", accept_objective=False) != Adaptation():
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

    def reads(self, folder: Path) -> ReadSettings:
        """Returns the way in which samples of a plain data module are read.

        Args:
            folder: Folder of the results.

        Raises:
            InputError: If a setting is out of range.
        """
        return ReadSettings(self.draws, self.memory_share, folder)

    def _of_outputs(self) -> LossesOfOutputs:
        if self.sample_losses or not (self.outputs and self.output_losses):
            raise InputError(
                f"The losses of a sample are stated by adapt.sample_losses alone, or by adapt.outputs and "
                f"adapt.output_losses together; got sample_losses {self.sample_losses}, outputs {self.outputs}, "
                f"output_losses {self.output_losses}.\n  Give one of the two."
            )
        return LossesOfOutputs(dotted(self.outputs, "adapt.outputs"), dotted(self.output_losses, "adapt.output_losses"))

    def identity_settings(self) -> dict[str, JSON]:
        """Returns the settings that change a number; the ids are part of the fingerprint of the data."""
        drawn = {"draws": self.draws} if self.draws > 1 else {}
        parts = {"outputs": self.outputs, "output_losses": self.output_losses} if self.outputs else {}
        return {"sample_losses": self.sample_losses, **parts, "penalty": self.penalty, "l2": self.l2, **drawn}


def dotted(path: str, setting: str) -> Callable[..., Any]:
    """Imports the function with this dotted name.

    Args:
        path: Dotted name, `module.function`.
        setting: Name of the setting, for messages.

    Raises:
        InputError: If no such function exists; the message tells which part of the name is missing.
    """
    module, _, name = path.rpartition(".")
    if not module:
        raise InputError(_no_function(path, setting, "it names no module"))
    try:
        found = getattr(importlib.import_module(module), name, _MISSING)
    except Exception as error:  # a file of the user may raise anything when imported
        raise InputError(_no_function(path, setting, str(error))) from error
    if not callable(found):
        missing = f"module {module!r} has no attribute {name!r}"
        raise InputError(
            _no_function(path, setting, missing if found is _MISSING else f"it is a {type(found).__name__}")
        )
    function: Callable[..., Any] = found
    return function


def data_of(
    datamodule: L.LightningDataModule | None,
    module: L.LightningModule,
    ids: IdSetting = "auto",
    reads: ReadSettings | None = None,
    test_loader: str | int | None = None,
) -> AttributionData:
    """Returns the data module under the data contract; without one, the loaders within the module.

    Args:
        datamodule: Data module, if there is one.
        module: The model as its author wrote it.
        ids: Setting of the ids of a plain one.
        reads: Way in which the samples of a plain one are read; None for the defaults.
        test_loader: Name or index of the test loader among several.

    Raises:
        InputError: If there are no data, or a data module that states ids and tests itself is given other ones.
    """
    if datamodule is None:
        if not defines(module, "train_dataloader"):
            raise InputError(
                f"There are no data: no --data is given, and {type(module).__name__} has no train_dataloader.\n"
                "  Give --data my_project.MyDataModule, or write train_dataloader and val_dataloader in the module."
            )
        return AdaptedData(module, ids, reads, test_loader=test_loader)
    if not isinstance(datamodule, AttributionData):
        return AdaptedData(datamodule, ids, reads, test_loader=test_loader)
    if test_loader is not None:
        raise InputError(
            f"--data_loader {test_loader}: {type(datamodule).__name__} has one set of tests.\n  Leave the flag out."
        )
    if ids != "auto":
        raise InputError(
            f"{type(datamodule).__name__} states the ids of its samples itself; the setting adapt.ids is for data "
            "modules that do not.\n  Leave it out."
        )
    return datamodule


def _no_function(path: str, setting: str, why: str) -> str:
    return (
        f"{setting} = {path} is no function that can be called: {why}.\n"
        "  Give it as module.function; modules are looked for in this folder and among what is installed."
    )
