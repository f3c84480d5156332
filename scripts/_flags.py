"""What the scripts share: from their flags to those of `ifloo`."""

from __future__ import annotations

import argparse
from pathlib import Path

CONFIG = Path(__file__).resolve().parent.parent / "configs"


def parser(description: str) -> argparse.ArgumentParser:
    """Flags that every script accepts."""
    made = argparse.ArgumentParser(description=description, allow_abbrev=False)
    made.add_argument("--experiment", choices=["mnist"], required=True)
    made.add_argument("--mnist_root", help="folder of the IDX files; downloads land there")
    made.add_argument("--mnist_train_limit", type=int)
    made.add_argument("--mnist_test_limit", type=int)
    made.add_argument("--mnist_source", choices=["auto", "full", "embedded"])
    made.add_argument("--seed", type=int)
    return made


def given(**flags: object) -> list[str]:
    """`--key value` for each flag that was given; two underscores stand for a dot."""
    said = {name.replace("__", "."): value for name, value in flags.items() if value is not None}
    return [f"--{name}={value}" for name, value in said.items()]


def data(args: argparse.Namespace) -> list[str]:
    """The data settings given."""
    return given(
        data__root=args.mnist_root,
        data__train_limit=args.mnist_train_limit,
        data__test_limit=args.mnist_test_limit,
        data__source=args.mnist_source,
    )


def add_fit(flags: argparse.ArgumentParser) -> None:
    """The flags of a fit."""
    flags.add_argument("--optimizer", choices=["lbfgs", "sgd", "adamw"])
    flags.add_argument("--l2_reg", type=float)
    flags.add_argument("--lr", type=float)
    flags.add_argument("--epochs", type=int, help="with lbfgs: outer steps, each run to convergence")
    flags.add_argument("--batch_size", type=int)


def fit(args: argparse.Namespace) -> list[str]:
    """The settings of a fit that were given, on top of the experiment's config."""
    return [
        f"--config={CONFIG / 'mnist.yaml'}",
        *data(args),
        *given(
            seed_everything=args.seed,
            model__optimizer=args.optimizer,
            model__l2_reg=args.l2_reg,
            model__lr=args.lr,
            data__batch_size=args.batch_size,
            trainer__max_epochs=args.epochs,
        ),
    ]


def as_fitted() -> list[str]:
    """Model and data of the experiment with nothing said about them: all settings come from the checkpoint."""
    return ["--model=ifloo.models.LogisticRegression", "--data=ifloo.data.MNISTDataModule", "--trainer.logger=false"]
