"""What every command works with: the objects made from flags and config."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L

from ifloo.cli.adaptation import Adaptation
from ifloo.data import AttributionData, DataNotes
from ifloo.errors import InputError
from ifloo.models import Adapted, SampleLossModule, unwrap
from ifloo.refit import BaseCheckpoint, NewtonFinish, RefitSettings, weights_sha256
from ifloo.stages import AttributionSettings, InfluenceRun, InfluenceWriter, settings_json
from ifloo.store import JSON, Layout, RunFolder


@dataclass(frozen=True)
class Processes:
    """On how many devices scores are made, as the settings of the Trainer say it; `auto`: on one.

    Attributes:
        strategy: `auto` or `ddp`: one process per device, each with the whole model.
        devices: how many, or which, on each machine.
        num_nodes: machines.
    """

    strategy: object = "auto"
    devices: object = "auto"
    num_nodes: int = 1

    @property
    def unsaid(self) -> bool:
        """Lightning would take all devices of the machine, and a fit on many is another fit."""
        return (self.strategy, self.devices, self.num_nodes) == ("auto", "auto", 1)

    def settings(self) -> dict[str, Any]:
        """Arguments for a Trainer.

        Raises:
            InputError: a strategy under which a process has not the whole model, or is no process of its own.
        """
        if self.strategy not in ("auto", "ddp"):
            raise InputError(
                f"Scores are made under --trainer.strategy auto or ddp, got {self.strategy}.\n"
                "  Each process needs the whole model and is started by the command line (no spawn, fork, FSDP, ...)."
            )
        if self.unsaid:
            return {"devices": 1}
        return {"strategy": self.strategy, "devices": self.devices, "num_nodes": self.num_nodes}


@dataclass(frozen=True)
class Setup:
    """What a command works with, made from flags and config.

    Attributes:
        experiment: <exp>.
        module: the model, untrained until `restored`.
        datamodule: of its data.
        trainer: for the fit.
        accelerator: for everything else.
        attribution: settings of the scores.
        refit: settings of the refits.
        finish: callback that ends every fit.
        layout: where results go.
        checkpoint: the base model's file.
        seed: of the fit.
        overwrite: replace results of other settings.
        base: the checkpoint, if it was there.
        processes: for the scores; everything else runs in one.
        adaptation: how a plain module states its losses.
        arguments: the model was made with, as flags and config say them.
        said: warnings that this run has given.
        looked: whether the module was trained, at each look this run has taken at it.
    """

    experiment: str
    module: SampleLossModule
    datamodule: AttributionData
    trainer: L.Trainer
    accelerator: str
    attribution: AttributionSettings
    refit: RefitSettings
    finish: NewtonFinish
    layout: Layout
    checkpoint: Path
    seed: int
    overwrite: bool
    base: BaseCheckpoint | None
    processes: Processes = Processes()
    adaptation: Adaptation = field(default_factory=Adaptation)
    arguments: dict[str, object] = field(default_factory=dict)
    warned: set[str] = field(default_factory=set)
    checked_modes: set[bool] = field(default_factory=set)

    @property
    def subject(self) -> L.LightningModule:
        """The model as its author wrote it."""
        return unwrap(self.module)

    @property
    def lightning_data(self) -> L.LightningDataModule:
        """The data module as a Trainer takes it."""
        assert isinstance(self.datamodule, L.LightningDataModule)  # it was made as one
        return self.datamodule

    @property
    def rank(self) -> int:
        """Of this process among those of a distributed run; 0 writes the files."""
        return self.trainer.global_rank

    def one_process(self, command: str) -> None:
        """Refuses a command to run in many.

        Raises:
            InputError: more than one device was asked for.
        """
        if self.trainer.world_size > 1:
            raise InputError(
                f"`ifloo {command}` fits in one process, got --trainer.strategy {self.processes.strategy}, "
                f"--trainer.devices {self.processes.devices}, --trainer.num_nodes {self.processes.num_nodes}: a fit "
                "dealt out to several has another objective (shares of unequal size, samples twice).\n"
                "  Use --trainer.devices 1 here; `ifloo influence` takes as many devices as there are."
            )

    @property
    def test_ids(self) -> list[int]:
        """The test ids listed.

        Raises:
            InputError: `all` was asked for.
        """
        if self.attribution.test_ids == "all":
            raise InputError(
                "Refits and reports need test ids by name, got `all`; give --attribution.test_ids '[0, 8]'."
            )
        return list(self.attribution.test_ids)

    def predict_trainer(self, writer: InfluenceWriter, bar: bool) -> L.Trainer:
        """A Trainer for one pass over the training data; torch.func needs no inference mode."""
        return L.Trainer(
            accelerator=self.accelerator,
            **self.processes.settings(),
            use_distributed_sampler=False,  # a process is given its share; Lightning's would repeat a sample
            callbacks=[writer],
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=bar,
            inference_mode=False,
        )

    def influence_run(self, layout: Layout, overwrite: bool) -> InfluenceRun:
        """The stage that scores, with the run behind the checkpoint."""
        recorded, said = RunFolder.of(self.checkpoint), self.base.record.get("said", {}) if self.base else {}
        return InfluenceRun(
            self.module, self.datamodule, self.attribution, layout, self.origin(), overwrite, recorded, said
        )

    def origin(self) -> dict[str, JSON]:
        """What the base model is: the settings behind every number of the later commands."""
        free = DataNotes(self.datamodule).free_settings
        training = {name: value for name, value in self.datamodule.hparams.items() if name not in free}
        return {
            "model": type(self.subject).__name__,
            **({"adapt": self.adaptation.identity_settings()} if self.subject is not self.module else {}),
            "objective": settings_json(self.hyper_parameters()),
            "data": self.datamodule.fingerprint(),
            "loader": settings_json(training),
            "seed": self.fit_seed,
            "weights": weights_sha256(self.module),
        }

    def hyper_parameters(self) -> dict[str, Any]:
        """The arguments the model was made with, as it saved them.

        Raises:
            InputError: the model does not save all of them, so that it could be neither compared nor made again.
        """
        saved = {k: v for k, v in dict(self.module.hparams).items() if not k.startswith("_")}
        arguments = set(inspect.signature(type(self.subject).__init__).parameters) - {"self", "args", "kwargs"}
        if missing := sorted(arguments - saved.keys()):
            if self.subject is not self.module and self.refit.init == "warm":
                return {**self.arguments, **saved}  # compared only: refits start from copies
            raise InputError(
                f"{type(self.subject).__name__} does not save its arguments {missing}.\n"
                "  Call self.save_hyperparameters() in its __init__: results are compared, and refits made, by them."
            )
        return saved

    def fresh_model(self) -> Callable[[], SampleLossModule]:
        """Makes the model again from its arguments, untrained; travels between processes.

        Raises:
            InputError: as `hyper_parameters`.
        """
        arguments = self.hyper_parameters()
        if isinstance(self.module, Adapted):
            return functools.partial(_adapted_again, self.module, functools.partial(type(self.subject), **arguments))
        return functools.partial(type(self.module), **arguments)

    @property
    def fit_seed(self) -> int:
        """Seed of the base fit, and so of every refit."""
        return self.seed if self.base is None else self.base.record["seed"]

    def load_data(self) -> None:
        """Fetches and reads the data; doing it twice costs nothing."""
        self.datamodule.prepare_data()
        self.datamodule.setup("fit")

    def restore(self) -> None:
        """Loads data and weights, and refuses data that are not those of the fit.

        Raises:
            InputError: the training data differ from those the checkpoint was fitted on.
        """
        assert self.base is not None
        self.load_data()
        found, fitted = self.datamodule.fingerprint(), self.base.record["fingerprint"]
        notes = DataNotes(self.datamodule)
        if fitted is not None and found != fitted:
            raise InputError(
                f"The training data are not those the checkpoint {self.base.path} was fitted on: their content has "
                f"SHA-256 {found[:16]}..., fitted on {fitted[:16]}....\n"
                f"  Data now: {notes.source_taken or '?'} ({notes.source_reason or '?'}); at the fit: "
                f"{self.base.record.get('source')}.\n"
                "  Give the same data (--data.source, --data.root), or fit again."
            )
        self.base.restore(self.module)


def _adapted_again(like: Adapted, made: Callable[[], L.LightningModule]) -> Adapted:
    return like.again(made())
