"""Runs a command line; turns the two kinds of error into exit codes."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

import ifloo
from ifloo.cli.former_settings import current_flags
from ifloo.cli.lightning_cli import IflooCLI
from ifloo.cli.setup import Setup
from ifloo.errors import InputError, WorkError
from ifloo.stages.distributed.process_group import ProcessGroup
from ifloo.termination import CODE as TERMINATED
from ifloo.termination import Terminated, ended_by_sigterm

# Lightning's advice on loaders and hardware, which is about other data than ours (in memory, one batch).
_THIRD_PARTY = (
    "does not have many workers",
    "is smaller than the logging interval",
    "isinstance\\(treespec, LeafSpec\\)",
    "Checkpoint directory",
    "have no `validation_step`",
)

_CHATTY = (
    "lightning.pytorch.utilities.rank_zero",
    "lightning.pytorch.accelerators.cuda",
    "lightning.pytorch.trainer.connectors.checkpoint_connector",  # about a setting that is ours to choose
    "lightning.pytorch.trainer.connectors.signal_connector",  # that SIGTERM came, as our own word states too
    "lightning.fabric",
)


def run(arguments: Sequence[str], work: Callable[[Setup], object] | None = None) -> int:
    """Runs `ifloo` with these arguments, or `work` in place of their command.

    Returns:
        The exit code: 0; 2 for wrong input; 1 for a failure during work; interrupted by Ctrl-C 130, by SIGTERM 143.

    Raises:
        Exception: a fault in the code.
        SystemExit: of the parser.
    """
    with ended_by_sigterm(_interrupted) as terminated:
        try:
            with _quiet(), _argv(named_configs(current_flags(arguments))):
                IflooCLI(work)
        except BaseException as error:
            if terminated.is_set() or isinstance(error, (Terminated, SIGTERMException)):
                _interrupted()
                return TERMINATED
            if (code := _code_of(error)) is None:
                raise
            return code
        finally:
            ProcessGroup.close_leftover()
    return 0


def _code_of(error: BaseException) -> int | None:
    """The exit code of a failure, which it reports; None: it is none of ours."""
    if isinstance(error, KeyboardInterrupt) or (
        isinstance(error, SystemExit) and isinstance(error.__context__, KeyboardInterrupt)
    ):  # a Trainer turns Ctrl-C into SystemExit
        _interrupted()
        return 130
    if isinstance(error, WorkError):
        print(f"ifloo: failed: {error}", file=sys.stderr)
        return 1
    wrong = _wrapped(error) if isinstance(error, ValueError) else None
    if wrong is None and not isinstance(error, MisconfigurationException):
        return None
    print(f"ifloo: error: {wrong or error}", file=sys.stderr)
    return 2


def named_configs(arguments: Sequence[str]) -> list[str]:
    """The arguments, with `--config NAME` of a config that comes with ifloo as the path of its file.

    Raises:
        InputError: the name is neither a file nor one of these.
    """
    made = list(arguments)
    for k, word in enumerate(arguments):
        flag, said, value = word.partition("=")
        if flag not in ("--config", "-c") or (not said and k + 1 == len(arguments)):
            continue
        name = value if said else arguments[k + 1]
        if not re.fullmatch(r"\w+", name) or Path(name).is_file():
            continue
        ours = {path.stem: path for path in (Path(ifloo.__file__).parent / "configs").glob("*.yaml")}
        if name not in ours:
            raise InputError(
                f"--config {name}: there is no such file, and the configs that come with ifloo are "
                f"{', '.join(sorted(ours))}.\n  Give the path of a YAML file, or one of these names."
            )
        made[k] = f"{flag}={ours[name]}" if said else word
        if not said:
            made[k + 1] = str(ours[name])
    return made


@rank_zero_only  # of many processes the first one reports
def _interrupted() -> None:
    print("ifloo: interrupted; the same command goes on from here.", file=sys.stderr, flush=True)


def _wrapped(error: BaseException | None) -> InputError | None:
    """The InputError of a constructor, which jsonargparse puts into a ValueError of its own."""
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__
    return error


@contextmanager
def _argv(arguments: Sequence[str]) -> Generator[None, None, None]:
    """LightningCLI reads `sys.argv`; given arguments of its own it warns."""
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # where class and function names of the user's own are looked for
    before = sys.argv  # its first word stays: a ddp strategy starts its other processes by it
    sys.argv = [*before[:1], *arguments]
    try:
        yield
    finally:
        sys.argv = before


@contextmanager
def _quiet() -> Generator[None, None, None]:
    """Our own lines, warnings of others, no advertisements."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING, force=False)
    logging.getLogger("ifloo").setLevel(logging.INFO)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for text in _THIRD_PARTY:
            warnings.filterwarnings("ignore", message=f".*{text}.*")
        yield
