"""One run of the command line: the experiment, where it runs, and the warnings it has given."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import Any

import lightning as L

from ifloo.cli.experiment import Experiment
from ifloo.data.adapted import training_loader
from ifloo.errors import InputError
from ifloo.models import Adapted
from ifloo.models.run_state import RunState
from ifloo.params import ParamSpace
from ifloo.refit import RefitStage, TrainerSettings, weights_sha256
from ifloo.stages import InfluenceStage, InfluenceWriter
from ifloo.stages.certificate.examined_run import ExaminedRun, objective_certificate
from ifloo.stages.certificate.run_certificate import CertificateRequest
from ifloo.store import Layout, RunFolder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Processes:
    """Devices that compute scores, as the settings of the Trainer name them; `auto` means one.

    Attributes:
        strategy: `auto` or `ddp`: one process per device, each with the whole model.
        devices: Number or list of devices on each machine.
        num_nodes: Number of machines.
    """

    strategy: object = "auto"
    devices: object = "auto"
    num_nodes: int = 1

    @property
    def unspecified(self) -> bool:
        """Whether all settings are defaults: Lightning would take all devices, and a fit on many is another fit."""
        return (self.strategy, self.devices, self.num_nodes) == ("auto", "auto", 1)

    def trainer_arguments(self) -> dict[str, Any]:
        """Returns arguments of a Trainer.

        Raises:
            InputError: If a process of this strategy has not the whole model, or is not started by the command line.
        """
        if self.strategy not in ("auto", "ddp"):
            raise InputError(
                f"Scores are made under --trainer.strategy auto or ddp, got {self.strategy}.\n"
                "  Each process needs the whole model and is started by the command line (no spawn, fork, FSDP, ...)."
            )
        if self.unspecified:
            return {"devices": 1}
        return {"strategy": self.strategy, "devices": self.devices, "num_nodes": self.num_nodes}


@dataclass
class Session:
    """One run of a command on an experiment.

    Attributes:
        experiment: Objects that the command works with; a fit replaces them by those with its checkpoint.
        trainer: Trainer of the fit.
        accelerator: Accelerator of scores and refits.
        overwrite: Whether results of other settings are replaced.
        processes: Devices that compute scores; all other work runs in one process.
        warned: Warnings given in this run.
        checked_modes: Modes (trained, untrained) in which this run has checked the module.
        objectives: What was found on J and the training step, by the SHA-256 of the weights.
    """

    experiment: Experiment
    trainer: L.Trainer
    accelerator: str
    overwrite: bool
    processes: Processes = Processes()
    warned: set[str] = field(default_factory=set)
    checked_modes: set[bool] = field(default_factory=set)
    objectives: dict[str, ExaminedRun] = field(default_factory=dict)

    @property
    def rank(self) -> int:
        """Rank of this process in a distributed run; rank 0 writes the files."""
        return self.trainer.global_rank

    def require_one_process(self, command: str) -> None:
        """Checks that the run has one process.

        Raises:
            InputError: If the settings name more than one device.
        """
        if self.trainer.world_size > 1:
            raise InputError(
                f"`ifloo {command}` fits in one process, got --trainer.strategy {self.processes.strategy}, "
                f"--trainer.devices {self.processes.devices}, --trainer.num_nodes {self.processes.num_nodes}: a fit "
                "dealt out to several has another objective (shares of unequal size, samples twice).\n"
                "  Use --trainer.devices 1 here; `ifloo influence` takes as many devices as there are."
            )

    def writing_to(self, layout: Layout, overwrite: bool) -> Session:
        """Returns the session with another folder of results."""
        return replace(self, experiment=replace(self.experiment, layout=layout), overwrite=overwrite)

    def predict_trainer(self, writer: InfluenceWriter, bar: bool) -> L.Trainer:
        """Builds a Trainer for one pass over the training data; torch.func needs no inference mode."""
        return L.Trainer(
            accelerator=self.accelerator,
            **self.processes.trainer_arguments(),
            use_distributed_sampler=False,  # a process is given its share; Lightning's would repeat a sample
            callbacks=[writer],
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=bar,
            inference_mode=False,
        )

    def examined(self) -> ExaminedRun:
        """Holds J against what was trained, once per base model; the module then has the weights that were found.

        Raises:
            InputError: If the two differ for an unexplained reason, and this is not accepted.
        """
        exp = self.experiment
        key = weights_sha256(exp.module)
        if key not in self.objectives:
            request = CertificateRequest.of(exp.module, training_loader(exp.datamodule), exp.attribution.parameters)
            if not isinstance(exp.module, Adapted):  # the same whether the module was fitted now or read from a file
                request = replace(request, state=RunState(), datamodule=None, ran=False)
            request = replace(
                request,
                stated=exp.base is not None and exp.base.record.get("model_class") is not None,
                accept=exp.adaptation.accept_objective,
                dtype=exp.attribution.torch_dtype,
                device=self.trainer.strategy.root_device,
                fit_known=True,
                curved=exp.attribution.uses_curvature,
            )
            found = objective_certificate(request)
            if exp.doubtful_splits and (certificate := found.certificate) is not None:
                doubt = "another split than that of the fit"
                found = replace(found, certificate=replace(certificate, data_in_doubt=doubt))
            self.objectives[key] = found
        self.objectives[key].state_weights(exp.module, exp.datamodule.train_set.ids)
        return self.objectives[key]

    def influence_stage(self) -> InfluenceStage:
        """Builds the stage that scores, with the recorded run behind the checkpoint."""
        exp = self.experiment
        return InfluenceStage(
            exp.module,
            exp.datamodule,
            exp.attribution,
            exp.layout,
            exp.base_settings(),
            self.predict_trainer,
            overwrite=self.overwrite,
            recorded=RunFolder.of(exp.checkpoint),
            refit_recipe=exp.base.record.get("given", {}) if exp.base else {},
            objective=self.examined(),
        )

    def note_parameters(self) -> None:
        """Logs that fits move all trained parameters, where the settings attribute some of them."""
        module, patterns = self.experiment.module, self.experiment.attribution.parameters
        trained, attributed = ParamSpace.of(module).size, ParamSpace.of(module, patterns).size
        if attributed < trained:
            log.info(
                "attribution.parameters restricts the scores alone: refits, and the Newton steps that finish a fit, "
                "move all %s trained parameters, not only the %s attributed ones. To refit these alone, freeze the "
                "others (requires_grad_(False)).",
                f"{trained:,}",
                f"{attributed:,}",
            )

    def refit_stage(self, recipe: TrainerSettings) -> RefitStage:
        """Builds the stage that refits.

        Args:
            recipe: Trainer settings of each refit.

        Raises:
            InputError: If refits from scratch need arguments that the model does not save.
        """
        exp = self.experiment
        self.examined()
        self.note_parameters()
        return RefitStage(
            exp.module,
            exp.datamodule,
            exp.refit,
            exp.layout,
            exp.base_settings(),
            recipe,
            exp.finish,
            exp.fit_seed,
            make_model=exp.fresh_model() if exp.refit.init == "cold" else None,
            overwrite=self.overwrite,
        )
