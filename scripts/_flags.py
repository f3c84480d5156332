"""Shared flags of the scripts, and their translation to the flags of `ifloo`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


@dataclass(frozen=True)
class Experiment:
    """One experiment of the original tool, expressed as settings of ifloo.

    Attributes:
        name: Name of the experiment, of its config and of its default files.
        model: Class of the model.
        data: Class of the data module.
        settings: Settings of ifloo that each flag of this experiment sets.
        optimizers: Optimizers that the model supports.
    """

    name: str
    model: str
    data: str
    settings: Mapping[str, tuple[str, ...]]
    optimizers: tuple[str, ...]

    @property
    def checkpoint(self) -> str:
        return f"./models/{self.name}_base.pth"

    @property
    def outputs(self) -> str:
        return f"./outputs/{self.name}"

    def given_flags(self, args: argparse.Namespace) -> list[str]:
        """Lists the flags of this experiment that were given."""
        return [flag for flag in self.settings if getattr(args, flag) is not None]

    def own(self, args: argparse.Namespace) -> list[str]:
        """Returns the settings of ifloo set by this experiment's flags."""
        flags = self.given_flags(args)
        return [f"--{setting}={getattr(args, flag)}" for flag in flags for setting in self.settings[flag]]

    def as_fitted(self) -> list[str]:
        """Returns model and data without settings, so that all settings come from the checkpoint."""
        return [f"--model={self.model}", f"--data={self.data}", "--trainer.logger=false"]


MNIST = Experiment(
    name="mnist",
    model="ifloo.models.LogisticRegression",
    data="ifloo.data.MNISTDataModule",
    settings={
        "mnist_root": ("data.root",),
        "mnist_train_limit": ("data.train_limit",),
        "mnist_test_limit": ("data.test_limit",),
        "mnist_source": ("data.source",),
    },
    optimizers=("lbfgs", "sgd", "adamw"),
)
MULTIMODAL = Experiment(
    name="multimodal",
    model="ifloo.models.MultimodalLM",
    data="ifloo.data.MultimodalDataModule",
    settings={
        "train_jsonl": ("data.train_jsonl",),
        "test_jsonl": ("data.test_jsonl",),
        "image_root": ("data.image_root",),
        "train_limit": ("data.train_limit",),
        "test_limit": ("data.test_limit",),
        "on_bad_row": ("data.on_bad_row",),
        "embed_dim": ("model.embed_dim",),
        "num_heads": ("model.num_heads",),
        "num_layers": ("model.num_layers",),
        "max_seq_len": ("model.max_seq_len", "data.max_seq_len"),
    },
    optimizers=("sgd", "adam", "adamw"),
)
EXPERIMENTS = (MNIST, MULTIMODAL)


def parser(description: str) -> argparse.ArgumentParser:
    """Returns a parser of the flags that every script accepts."""
    flags = argparse.ArgumentParser(description=description, allow_abbrev=False)
    flags.add_argument("--experiment", choices=[one.name for one in EXPERIMENTS], required=True)
    flags.add_argument("--seed", type=int)
    mnist = flags.add_argument_group("flags of --experiment mnist")
    mnist.add_argument("--mnist_root", help="folder of the IDX files; downloads land there")
    mnist.add_argument("--mnist_train_limit", type=int)
    mnist.add_argument("--mnist_test_limit", type=int)
    mnist.add_argument("--mnist_source", choices=["auto", "full", "embedded"])
    multimodal = flags.add_argument_group("flags of --experiment multimodal")
    multimodal.add_argument("--train_jsonl", help="rows to train on; default: the set that comes with ifloo")
    multimodal.add_argument("--test_jsonl", help="rows to explain; default: those of --train_jsonl")
    multimodal.add_argument("--image_root", help="folder of the images of both; default: the folder of each")
    multimodal.add_argument("--train_limit", type=int)
    multimodal.add_argument("--test_limit", type=int)
    multimodal.add_argument("--on_bad_row", choices=["error", "skip"])
    multimodal.add_argument("--embed_dim", type=int)
    multimodal.add_argument("--num_heads", type=int)
    multimodal.add_argument("--num_layers", type=int)
    multimodal.add_argument("--max_seq_len", type=int, help="tokens of a row, for model and data")
    return flags


def parsed(flags: argparse.ArgumentParser, argv: Sequence[str] | None) -> tuple[argparse.Namespace, Experiment]:
    """Parses the flags and returns them with the experiment; exits with an error on a flag of another experiment."""
    args = flags.parse_args(argv)
    (experiment,) = (one for one in EXPERIMENTS if one.name == args.experiment)
    for other in EXPERIMENTS:
        if other is not experiment and (foreign := other.given_flags(args)):
            named = ", ".join(f"--{flag}" for flag in foreign)
            flags.error(f"with --experiment {experiment.name}, leave out the flags of {other.name}: {named}")
    optimizer = getattr(args, "optimizer", None)
    if optimizer not in (None, *experiment.optimizers):
        known = ", ".join(experiment.optimizers)
        flags.error(f"--optimizer {optimizer} is not one of --experiment {experiment.name}; choose from {known}")
    return args, experiment


def given(**flags: object) -> list[str]:
    """Returns `--key=value` for each flag that is not None; two underscores stand for a dot."""
    values = {name.replace("__", "."): value for name, value in flags.items() if value is not None}
    return [f"--{name}={value}" for name, value in values.items()]


def add_fit(flags: argparse.ArgumentParser) -> None:
    """Adds the flags of a fit."""
    flags.add_argument("--optimizer", choices=["lbfgs", "sgd", "adam", "adamw"])
    flags.add_argument("--l2_reg", type=float)
    flags.add_argument("--lr", type=float)
    flags.add_argument("--epochs", type=int, help="with lbfgs: outer steps, each run to convergence")
    flags.add_argument("--batch_size", type=int)


def fit(args: argparse.Namespace, experiment: Experiment) -> list[str]:
    """Returns the experiment's config and the settings of a fit that were given."""
    return [
        f"--config={CONFIGS / experiment.name}.yaml",
        *experiment.own(args),
        *_tests(args),
        *given(
            seed_everything=args.seed,
            model__optimizer=args.optimizer,
            model__l2_reg=args.l2_reg,
            model__lr=args.lr,
            data__batch_size=args.batch_size,
            trainer__max_epochs=args.epochs,
        ),
    ]


def _tests(args: argparse.Namespace) -> list[str]:
    """Uses the training file as test file if only that was given, as the original tool did, and prints a note."""
    if args.train_jsonl is None or args.test_jsonl is not None:
        return []
    print(
        f"No --test_jsonl: the rows of {args.train_jsonl} are the tests too. Test t is the row in line t + 1, which "
        "the model was trained on."
    )
    return given(data__test_jsonl=args.train_jsonl)
