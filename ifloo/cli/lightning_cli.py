"""`ifloo` as a LightningCLI: the groups trainer, model, data, attribution, refit, finish, adapt, and six commands."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import lightning as L
from jsonargparse import ActionYesNo, Namespace
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from ifloo.cli import commands
from ifloo.cli.adaptation import Adaptation, data_of
from ifloo.cli.building import build_of, made_with, misfits
from ifloo.cli.checkpoint_settings import Inherited, inherit, init_args, refuse_missing, refuse_other_class
from ifloo.cli.experiment import Build, Experiment
from ifloo.cli.foreign_checkpoint import given_recipe, print_trust
from ifloo.cli.help import COMMANDS
from ifloo.cli.parser import IflooParser
from ifloo.cli.session import Processes, Session
from ifloo.errors import InputError
from ifloo.models.run_state import RunState
from ifloo.refit import BaseCheckpoint, NewtonFinish, RefitSettings, SeededOrder, load_base, load_foreign
from ifloo.stages import AttributionSettings, RunRecorder
from ifloo.store import Layout, RunFolder

log = logging.getLogger(__name__)

Model: TypeAlias = L.LightningModule | None
Data: TypeAlias = L.LightningDataModule | None


class IflooTrainer(L.Trainer):
    """A Trainer with an empty method per command, as LightningCLI requires; `IflooCLI` runs the commands."""

    # ckpt_path: checkpoint of the user's own Trainer, read in place of the base model file
    def influence(self, model: Model = None, datamodule: Data = None, ckpt_path: str | None = None) -> None: ...

    def loo(self, model: Model = None, datamodule: Data = None, ckpt_path: str | None = None) -> None: ...

    def report(self, model: Model = None, datamodule: Data = None, ckpt_path: str | None = None) -> None: ...

    def pipeline(self, model: Model = None, datamodule: Data = None, ckpt_path: str | None = None) -> None: ...

    def doctor(self, model: Model = None, datamodule: Data = None, ckpt_path: str | None = None) -> None: ...


_TRAINER = IflooTrainer
_METHODS = (_TRAINER.influence, _TRAINER.loo, _TRAINER.report, _TRAINER.pipeline, _TRAINER.doctor)
for _method in _METHODS:
    _method.__doc__ = COMMANDS[_method.__name__]
OURS = tuple(method.__name__ for method in _METHODS)


class IflooCLI(LightningCLI):
    """Command line of one flat YAML for all commands; later commands take missing settings from the checkpoint.

    Attributes:
        given: Settings in flags and config files, without defaults.
        base: Checkpoint of the base model, where it exists.
        build: Function that makes module and data module, where the settings name one.
        inherited: Arguments that the checkpoint completed.
    """

    given: Namespace
    base: BaseCheckpoint | None = None
    build: Build | None = None
    inherited: Inherited

    def __init__(self, work: Callable[[Session], None] | None = None) -> None:
        """Parses `sys.argv` and runs its command, or `work` in place of that command."""
        self.work, self.inherited = work, Inherited()
        super().__init__(
            trainer_class=IflooTrainer,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            save_config_callback=None,  # the manifest records the run; without a logger it would write to the cwd
            parser_class=IflooParser,
            parser_kwargs={"prog": "ifloo", "allow_abbrev": False},  # a misspelt flag is never another one
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        ours = {name: {"model", "datamodule"} for name in OURS}
        wired = {"model", "train_dataloaders", "val_dataloaders", "datamodule", "ckpt_path", "weights_only"}
        return {"fit": wired, **ours}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--experiment", type=str, default="experiment", help="Name <exp> in the default file names."
        )
        parser.add_argument(
            "--checkpoint", type=str | None, default=None, help="Base model file; default models/<exp>_base.pth."
        )
        parser.add_argument(
            "--output_dir", type=str | None, default=None, help="Folder of results; default outputs/<exp>."
        )
        parser.add_argument(
            "--overwrite", action="store_true", help="Replace results (and base model) made with other settings."
        )
        parser.add_argument(
            "--build", type=str | None, default=None, help="Function () -> (module, datamodule), in place of classes."
        )
        parser.add_argument(
            "--data_loader", type=str | int | None, default=None, help="Name or index of the test loader among several."
        )
        parser.add_argument(
            "--trust_checkpoint",
            action=ActionYesNo(yes_prefix="", no_prefix="no_"),
            nargs="?",
            default=False,
            help="Read objects of a checkpoint, import what its arguments name: that runs code which the file names.",
        )
        parser.add_class_arguments(AttributionSettings, "attribution")
        parser.add_class_arguments(RefitSettings, "refit")
        parser.add_class_arguments(NewtonFinish, "finish")
        parser.add_class_arguments(Adaptation, "adapt")
        nystrom = {"class_path": "ifloo.solvers.Nystrom"}
        auto = {"class_path": "ifloo.solvers.Auto"}
        parser.set_defaults({"attribution.solver": auto, "finish.preconditioner": nystrom})

    def _parse_ckpt_path(self) -> None:
        """Does nothing: Lightning takes hyper-parameters from a checkpoint here, `inherit` also compares them."""

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        super().parse_arguments(parser, args)
        command = self.config["subcommand"]
        self.given = parser.parse_args(args, defaults=False)[command]  # type: ignore[arg-type]

    def before_instantiate_classes(self) -> None:
        """Completes the settings from the checkpoint.

        A fit has all its settings in its config: it replaces a checkpoint of other settings only with `--overwrite`.

        Raises:
            InputError: If a given setting contradicts the checkpoint, or a required one is neither given nor in it.
        """
        config = self.config[self.subcommand]
        _name_run(config, self.given)
        self.build = build_of(config, self.given)
        self.inherited = self._inherit(config)
        refuse_missing(config, self.given, self.inherited, self.base.path if self.base else None)

    def _inherit(self, config: Namespace) -> Inherited:
        """Reads the checkpoint, if there is one, and completes the settings from it."""
        if (foreign := self.foreign_checkpoint) is not None:
            recipe = given_recipe(self.given, foreign, self.layout, self.subcommand == "loo", config.overwrite)
            if config.trust_checkpoint:
                print_trust(foreign)
            trusted, cold = config.trust_checkpoint, config.refit.init == "cold"
            self.base = load_foreign(foreign, config.seed_everything, recipe, trusted=trusted, repeated=cold)
            inherited = inherit(config, self.given, self.base, own=False, trusted=config.trust_checkpoint)
            if inherited.filled:
                log.info("arguments from %s: %s", foreign, inherited.summary)
            return inherited
        if self.subcommand in ("fit", "pipeline", "doctor"):
            keeps_no_checkpoint = self.work is not None and self.subcommand == "fit"
            if keeps_no_checkpoint or config.overwrite or not self.checkpoint.is_file():
                return Inherited()
            self.base = self._own_base(config)
            return inherit(config, config if self.subcommand == "fit" else self.given, self.base)
        self.base = self._own_base(config)
        return inherit(config, self.given, self.base)

    def _own_base(self, config: Namespace) -> BaseCheckpoint:
        """Reads the checkpoint that `ifloo fit` wrote."""
        if config.trust_checkpoint:
            print_trust(self.checkpoint)
        return load_base(self.checkpoint, trusted=config.trust_checkpoint)

    def instantiate_classes(self) -> None:
        """Makes model, data module and Trainer, the first two by the function of --build where it is given.

        Raises:
            InputError: If arguments that the checkpoint holds do not fit the classes.
            TypeError: If an argument given in another way does not.
            ValueError: The same.
        """
        config, groups = self.config[self.subcommand], {}
        for group in self.inherited.objects:
            groups[group], config[group] = config[group], None
        try:
            super().instantiate_classes()
        except (ValueError, TypeError) as error:
            self._refuse_misfits({**dict(config.items(branches=True, nested=False)), **groups}, error)
            raise
        for group, objects in self.inherited.objects.items():
            config[group], made = groups[group], made_with(groups[group], objects)
            self.model, self.datamodule = (made, self.datamodule) if group == "model" else (self.model, made)
        if self.build is not None:
            self.model, self.datamodule = self.build()
            if self.base is not None:
                refuse_other_class(self.base, type(self.model))

    def _refuse_misfits(self, groups: Mapping[str, Any], error: Exception) -> None:
        """Checks that the values of the checkpoint fit the arguments of the classes, after these were not made.

        Raises:
            InputError: If some do not.
        """
        for group, values in self.inherited.filled.items():
            if found := misfits(groups[group], values):
                raise InputError(
                    f"{self.checkpoint}: the checkpoint holds arguments that {groups[group].class_path} does not take: "
                    f"{'; '.join(f'{group}.{one}' for one in found)}.\n"
                    f"  Give them (--{group}.{found[0].split()[0]}=...), or name the checkpoint of this class."
                ) from error

    @cached_property
    def foreign_checkpoint(self) -> Path | None:
        """Checkpoint that the user's own Trainer wrote; None where the base model is a checkpoint of `ifloo fit`.

        Raises:
            InputError: If the settings name both kinds of checkpoint.
        """
        config = self.config[self.subcommand]
        if self.subcommand == "fit" or config.get("ckpt_path") is None:
            return None
        if config.checkpoint:
            raise InputError(
                f"--ckpt_path {config.ckpt_path} and --checkpoint {config.checkpoint} both name the base model.\n"
                "  Give --checkpoint for one that `ifloo fit` wrote, --ckpt_path for one that your own Trainer wrote."
            )
        return Path(config.ckpt_path)

    @cached_property
    def checkpoint(self) -> Path:
        """File of the base model."""
        config = self.config[self.subcommand]
        if self.foreign_checkpoint is not None:
            return self.foreign_checkpoint
        return Path(config.checkpoint) if config.checkpoint else Layout.checkpoint(config.experiment)

    @cached_property
    def layout(self) -> Layout:
        """Files of results."""
        config = self.config[self.subcommand]
        return Layout(Path(config.output_dir)) if config.output_dir else Layout.of(config.experiment)

    @cached_property
    def processes(self) -> Processes:
        """Devices that compute scores."""
        trainer = self.config[self.subcommand].trainer
        return Processes(trainer.strategy, trainer.devices, trainer.num_nodes)

    def session(self) -> Session:
        """Builds the session of the command from the objects that the config names."""
        config, made = self.config[self.subcommand], self.config_init[self.subcommand]
        experiment = Experiment(
            name=config.experiment,
            module=made.adapt.of(self.model),
            datamodule=data_of(
                self.datamodule, self.model, made.adapt.ids, made.adapt.reads(self.layout.root), config.data_loader
            ),
            attribution=made.attribution,
            refit=made.refit,
            finish=made.finish,
            layout=self.layout,
            checkpoint=self.checkpoint,
            seed=config.seed_everything,
            base=self.base,
            adaptation=made.adapt,
            arguments=init_args(config.model),
            build=self.build,
            planned=RunState.of_trainer(self.trainer),
            seed_given="seed_everything" in self.given,
        )
        return Session(experiment, self.trainer, config.trainer.accelerator, config.overwrite, self.processes)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Builds the Trainer of the config, with the callbacks that finish a fit and record it."""
        made = self.config_init[self.subcommand]
        callbacks: list[L.Callback] = [SeededOrder(), made.finish]
        if self.subcommand in ("fit", "pipeline") and made.attribution.needs_run:
            _refuse_finish(made.finish)
            callbacks.append(RunRecorder(RunFolder.of(self.checkpoint)))
        config = {**self._get(self.config_init, "trainer", default={}), **kwargs}
        if self.processes.unspecified:
            config["devices"] = 1
        return self._instantiate_trainer(config, callbacks)

    def _run_subcommand(self, subcommand: str) -> None:
        (self.work or commands.COMMANDS[subcommand])(self.session())


def _name_run(config: Namespace, given: Namespace) -> None:
    """Gives a TensorBoard logger without a name that of the experiment, where the report writes too."""
    logger = (given.get("trainer") or Namespace()).get("logger")
    if not isinstance(logger, Namespace) or not logger.class_path.endswith(".TensorBoardLogger"):
        return
    if "name" not in (logger.get("init_args") or Namespace()):
        config.trainer.logger.init_args.name = config.experiment


def _refuse_finish(finish: NewtonFinish) -> None:
    """Checks that no Newton steps follow the last optimizer step of a recorded run, which would not hold them.

    Raises:
        InputError: If Newton steps follow every optimizer (with L-BFGS nothing is recorded at all).
    """
    if finish.after == "always":
        raise InputError(
            "This fit is to be recorded for attribution, and finish.after = always moves the weights beyond its last "
            "step.\n  Give --finish.after never, or choose methods that need no recorded run."
        )
