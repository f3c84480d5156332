"""`ifloo` as a LightningCLI: the groups trainer, model, data, attribution, refit, finish, adapt, and six commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import lightning as L
from jsonargparse import Namespace
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from ifloo.cli import commands
from ifloo.cli.adaptation import Adaptation, data_of
from ifloo.cli.checkpoint_settings import inherit, init_args
from ifloo.cli.foreign_checkpoint import said_recipe
from ifloo.cli.former_settings import current_keys
from ifloo.cli.help import COMMANDS
from ifloo.cli.setup import Processes, Setup
from ifloo.errors import InputError
from ifloo.refit import BaseCheckpoint, NewtonFinish, RefitSettings, SeededOrder, load_base, load_foreign
from ifloo.stages import AttributionSettings, RunRecorder
from ifloo.store import Layout, RunFolder

Model: TypeAlias = L.LightningModule | None
Data: TypeAlias = L.LightningDataModule | None


class IflooTrainer(L.Trainer):
    """A Trainer with a method for each command, where LightningCLI looks for them; `IflooCLI` does the work."""

    # ckpt_path: a checkpoint that a Trainer wrote elsewhere, read in place of the base model file
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


class IflooParser(LightningArgumentParser):
    """Parser with short errors, without a usage of a hundred settings; keys of earlier releases keep working."""

    def _apply_actions(
        self,
        cfg: Namespace | dict[str, object],
        parent_key: str = "",
        prev_cfg: Namespace | None = None,
        skip_fn: Callable[[object], bool] | None = None,
    ) -> Namespace:
        """Checks a config that was read; jsonargparse has no public hook between the reading and the checks."""
        current = current_keys(cfg, parent_key) if isinstance(cfg, dict) else cfg
        checked: Namespace = super()._apply_actions(current, parent_key, prev_cfg, skip_fn)
        return checked

    def print_usage(self, file: object = None) -> None:
        """What jsonargparse prints before an error: nothing."""


class IflooCLI(LightningCLI):
    """One flat YAML serves every command; what a later command is not told comes from the checkpoint."""

    given: Namespace  # what was said in flags and config files, without defaults
    base: BaseCheckpoint | None = None

    def __init__(self, work: Callable[[Setup], object] | None = None) -> None:
        """Parses `sys.argv` and runs its command, or `work` in that command's place."""
        self.work = work
        super().__init__(
            trainer_class=IflooTrainer,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            save_config_callback=None,  # the manifest says what was run; without a logger it would write to the cwd
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
        parser.add_class_arguments(AttributionSettings, "attribution")
        parser.add_class_arguments(RefitSettings, "refit")
        parser.add_class_arguments(NewtonFinish, "finish")
        parser.add_class_arguments(Adaptation, "adapt")
        nystrom = {"class_path": "ifloo.solvers.Nystrom"}
        auto = {"class_path": "ifloo.solvers.Auto"}
        parser.set_defaults({"attribution.solver": auto, "finish.preconditioner": nystrom})

    def _parse_ckpt_path(self) -> None:
        """Lightning's way to take hyper-parameters from a checkpoint; ours (`inherit`) also compares them."""

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        super().parse_arguments(parser, args)
        command = self.config["subcommand"]
        self.given = parser.parse_args(args, defaults=False)[command]  # type: ignore[arg-type]

    def before_instantiate_classes(self) -> None:
        """Settings not given come from the checkpoint, contradicting ones are an error.

        A fit is asked for with all its settings: a checkpoint of others is replaced on demand only.
        """
        config = self.config[self.subcommand]
        _name_run(config, self.given)
        if self.elsewhere is not None:
            said = said_recipe(self.given, self.elsewhere, self.layout, self.subcommand == "loo", config.overwrite)
            self.base = load_foreign(self.elsewhere, config.seed_everything, said)
            inherit(config, self.given, self.base)
        elif self.subcommand in ("fit", "pipeline", "doctor"):
            named_elsewhere = self.work is not None and self.subcommand == "fit"
            if named_elsewhere or config.overwrite or not self.checkpoint.is_file():
                return
            self.base = load_base(self.checkpoint)
            inherit(config, config if self.subcommand == "fit" else self.given, self.base)
        else:
            self.base = load_base(self.checkpoint)
            inherit(config, self.given, self.base)

    @property
    def elsewhere(self) -> Path | None:
        """A checkpoint of a Trainer of the user's own.

        Raises:
            InputError: both kinds of checkpoint are named.
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

    @property
    def checkpoint(self) -> Path:
        config = self.config[self.subcommand]
        if self.elsewhere is not None:
            return self.elsewhere
        return Path(config.checkpoint) if config.checkpoint else Layout.checkpoint(config.experiment)

    @property
    def layout(self) -> Layout:
        config = self.config[self.subcommand]
        return Layout(Path(config.output_dir)) if config.output_dir else Layout.of(config.experiment)

    @property
    def processes(self) -> Processes:
        said = self.config[self.subcommand].trainer
        return Processes(said.strategy, said.devices, said.num_nodes)

    @property
    def setup(self) -> Setup:
        """Everything the commands need, as made from the config."""
        config, made = self.config[self.subcommand], self.config_init[self.subcommand]
        return Setup(
            experiment=config.experiment,
            module=made.adapt.of(self.model),
            datamodule=data_of(self.datamodule),
            trainer=self.trainer,
            accelerator=config.trainer.accelerator,
            attribution=made.attribution,
            refit=made.refit,
            finish=made.finish,
            layout=self.layout,
            checkpoint=self.checkpoint,
            seed=config.seed_everything,
            overwrite=config.overwrite,
            base=self.base,
            processes=self.processes,
            adaptation=made.adapt,
            arguments=init_args(config.model),
        )

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """The Trainer of the config, with the callbacks that finish a fit and record it."""
        made = self.config_init[self.subcommand]
        callbacks: list[L.Callback] = [SeededOrder(), made.finish]
        if self.subcommand in ("fit", "pipeline") and made.attribution.needs_run:
            _refuse_finish(made.finish)
            callbacks.append(RunRecorder(RunFolder.of(self.checkpoint)))
        config = {**self._get(self.config_init, "trainer", default={}), **kwargs}
        if self.processes.unsaid:
            config["devices"] = 1
        return self._instantiate_trainer(config, callbacks)

    def _run_subcommand(self, subcommand: str) -> None:
        (self.work or commands.COMMANDS[subcommand])(self.setup)


def _name_run(config: Namespace, given: Namespace) -> None:
    """A TensorBoard logger that is given no name writes where the report does: into the run of the experiment."""
    logger, said = config.trainer.logger, (given.get("trainer") or Namespace()).get("logger")
    if not isinstance(said, Namespace) or not said.class_path.endswith(".TensorBoardLogger"):
        return
    if "name" not in (said.get("init_args") or Namespace()):
        logger.init_args.name = config.experiment


def _refuse_finish(finish: NewtonFinish) -> None:
    """What follows the last optimizer step is no part of a recorded run.

    Raises:
        InputError: Newton steps would follow it whatever the optimizer (with L-BFGS nothing is recorded at all).
    """
    if finish.after == "always":
        raise InputError(
            "This fit is to be recorded for attribution, and finish.after = always moves the weights beyond its last "
            "step.\n  Give --finish.after never, or choose methods that need no recorded run."
        )
