"""Runs command lines as a shell would, but in this process, because the imports of a new process take seconds."""

import io
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

from ifloo.__main__ import main

CHECKOUT = Path(__file__).parents[2]
CONFIG = CHECKOUT / "configs" / "mnist.yaml"
N, TESTS = 100, 20

# A preconditioner of rank 300, chosen for 55,000 images, costs more than all refits on 100 images.
LIGHT = (
    "--trainer.accelerator=cpu",
    "--finish.preconditioner.rank=10",
    "--attribution.corrected=false",
)
SMALL = (
    f"--config={CONFIG}",
    "--data.source=embedded",
    f"--data.train_limit={N}",
    f"--data.test_limit={TESTS}",
    "--attribution.top_k=6",
    "--refit.top_k=4",
    "--refit.random=4",
    "--refit.null_refits=2",
    *LIGHT,
)


@dataclass(frozen=True)
class Outcome:
    """Exit code and output of a command."""

    code: int | str | None
    out: str
    err: str


def call(program: Callable[[Sequence[str]], int], folder: Path, arguments: Sequence[str]) -> Outcome:
    """Runs a program's `main` in a folder."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(folder)
        try:
            code: int | str | None = program(list(arguments))
        except SystemExit as stop:  # argparse and jsonargparse exit by it
            code = stop.code
    return Outcome(code, out.getvalue(), err.getvalue())


def ifloo(folder: Path, *arguments: str) -> Outcome:
    return call(main, folder, arguments)


def small(folder: Path, command: str, *more: str) -> Outcome:
    """Runs one command on a few of the embedded digits."""
    return ifloo(folder, command, *SMALL, *more)


def done(outcome: Outcome) -> Outcome:
    """Checks that a command succeeded, and returns its outcome."""
    assert outcome.code == 0, outcome.err
    return outcome


def contents(folder: Path) -> dict[str, bytes]:
    """Reads every file of a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
