"""Runs a command line and turns its errors into exit codes."""

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
from ifloo.cli.package_alias import one_lightning
from ifloo.cli.session import Session
from ifloo.errors import InputError, WorkError, command_line
from ifloo.former_names import FormerNameWarning
from ifloo.objective.user_code import failed_user_code
from ifloo.stages.distributed.process_group import ProcessGroup
from ifloo.termination import CODE as TERMINATED
from ifloo.termination import Terminated, ended_by_sigterm

# Advice of Lightning on loaders and hardware, which does not apply to data in memory and one batch.
_THIRD_PARTY = (
    "does not have many workers",
    "is smaller than the logging interval",
    "isinstance\\(treespec, LeafSpec\\)",
    "Checkpoint directory",
    "have no `validation_step`",
    "performance drop because we have not yet implemented the batching rule",  # of trials that choose a form of losses
    "already saved during checkpointing",  # of a module among the arguments, when it is made from a trusted checkpoint
)

_CHATTY = (
    "lightning.pytorch.utilities.rank_zero",
    "pytorch_lightning.utilities.rank_zero",  # the name for both packages, once this one is imported
    "lightning.pytorch.accelerators.cuda",
    "lightning.pytorch.trainer.connectors.checkpoint_connector",  # reports a setting that ifloo chooses
    "lightning.pytorch.trainer.connectors.signal_connector",  # reports SIGTERM, as ifloo does itself
    "lightning.fabric",
)


def run(arguments: Sequence[str], work: Callable[[Session], None] | None = None) -> int:
    """Runs `ifloo` with these arguments, or `work` in place of their command.

    Returns:
        The exit code: 0 after success, 1 after a failure during work, 2 for wrong input, 130 after Ctrl-C, 143 after
        SIGTERM.

    Raises:
        Exception: A fault in the code.
        SystemExit: The parser ends the program.
    """
    with command_line(), ended_by_sigterm(_interrupted) as terminated:
        try:
            with _quiet(), one_lightning(), _argv(named_configs(current_flags(arguments))):
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
    if terminated.is_set():  # `Terminated` was lost, as within a destructor, and the command went on to its end
        _interrupted()
        return TERMINATED
    return 0


def _code_of(error: BaseException) -> int | None:
    """Prints an expected failure and returns its exit code; returns None for any other."""
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
        wrong = failed_user_code(error)
        if wrong is None:
            return None
    print(f"ifloo: error: {wrong or error}", file=sys.stderr)
    return 2


def named_configs(arguments: Sequence[str]) -> list[str]:
    """Replaces the name of a config that comes with ifloo (`--config NAME`) by the path of its file.

    Raises:
        InputError: If the name is neither a file nor one of these configs.
    """
    words = list(arguments)
    for k, word in enumerate(arguments):
        flag, equals, value = word.partition("=")
        if flag not in ("--config", "-c") or (not equals and k + 1 == len(arguments)):
            continue
        name = value if equals else arguments[k + 1]
        if not re.fullmatch(r"\w+", name) or Path(name).is_file():
            continue
        ours = {path.stem: path for path in (Path(ifloo.__file__).parent / "configs").glob("*.yaml")}
        if name not in ours:
            raise InputError(
                f"--config {name}: there is no such file, and the configs that come with ifloo are "
                f"{', '.join(sorted(ours))}.\n  Give the path of a YAML file, or one of these names."
            )
        words[k] = f"{flag}={ours[name]}" if equals else word
        if not equals:
            words[k + 1] = str(ours[name])
    return words


@rank_zero_only  # of many processes, the first prints
def _interrupted() -> None:
    print("ifloo: interrupted; the same command goes on from here.", file=sys.stderr, flush=True)


def _wrapped(error: BaseException | None) -> InputError | None:
    """Returns the InputError of a constructor, which jsonargparse wraps in a ValueError."""
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__
    return error


@contextmanager
def _argv(arguments: Sequence[str]) -> Generator[None, None, None]:
    """Sets `sys.argv`, which LightningCLI reads; it warns where it is given arguments directly."""
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # classes and functions of the user are imported from here
    before = sys.argv  # the first word stays: a ddp strategy starts its other processes with it
    sys.argv = [*before[:1], *arguments]
    try:
        yield
    finally:
        sys.argv = before


@contextmanager
def _quiet() -> Generator[None, None, None]:
    """Shows log lines of ifloo, warnings of other packages without their advice, and former names as one plain line."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING, force=False)
    logging.getLogger("ifloo").setLevel(logging.INFO)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    python_form = warnings.formatwarning

    def plain_form(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        if issubclass(category, FormerNameWarning):  # the file and line would be those of ifloo's parser
            return f"{message}\n"
        return python_form(message, category, filename, lineno, line)

    with warnings.catch_warnings():
        for text in _THIRD_PARTY:
            warnings.filterwarnings("ignore", message=f".*{text}.*")
        warnings.formatwarning = plain_form
        try:
            yield
        finally:
            warnings.formatwarning = python_form
