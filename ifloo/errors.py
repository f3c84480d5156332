"""The two kinds of errors, which the command line turns into exit codes 2 and 1, and helpers for their messages."""

import re
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["IflooError", "InputError", "WorkError"]  # public; the functions are helpers of ifloo

NAMED = 3  # number of names listed in a message; the others are only counted


_by_command: ContextVar[bool] = ContextVar("by_command", default=False)
_SETTING = re.compile(
    r"--(?:adapt|attribution)\.(accept_objective|damping|ids|l2|parameters|penalty|sample_losses|test_ids)\b"
    r"(?: (true\b|third\b|\d+(?:\.\d+)?(?:e[+-]?\d+)?|\"\[[^\"]*\]\"|'\[[^']*\]'))?"
)
_QUOTES = "\"'"
_VALUES = {"true": "True", "third": "'third'"}


@contextmanager
def command_line() -> Generator[None, None, None]:
    """Lets the messages within name settings as the flags of a command; elsewhere they name arguments."""
    token = _by_command.set(True)
    try:
        yield
    finally:
        _by_command.reset(token)


def settings_named(text: str) -> str:
    """Returns a message that names settings as its reader gives them.

    Args:
        text: Message with the flags of the command line, such as `--adapt.l2 0.01`.

    Returns:
        The same message within `command_line()`; else with the arguments of the Python interface, such as `l2=0.01`.
    """
    return text if _by_command.get() else arguments_named(text)


def arguments_named(text: str) -> str:
    """Returns a message with the arguments of the Python interface in place of the flags of the command line."""
    return _SETTING.sub(_argument, text)


def _argument(flag: re.Match[str]) -> str:
    name, value = flag[1], flag[2]
    return f"`{name}`" if value is None else f"{name}={_VALUES.get(value) or value.strip(_QUOTES)}"


class IflooError(Exception):
    """Base class of all errors that ifloo raises; the text tells what was expected, what came, where, and a remedy.

    The text may name settings as flags; within a command they stay, for a caller from Python they become arguments.
    """

    def __init__(self, text: str = "") -> None:
        """Takes the text of the error."""
        super().__init__(settings_named(text))


class InputError(IflooError, ValueError):
    """Wrong input: a flag, a config, an input file, or existing results of other settings (exit code 2)."""


class WorkError(IflooError, RuntimeError):
    """Failed work on valid input: a solve that did not converge, a disk that is full (exit code 1)."""


def summarise(names: Sequence[str]) -> str:
    """Lists the first few names, followed by the number of all names if some are left out."""
    rest = f", ... ({len(names)} in all)" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + rest


def first_sentence(error: Exception) -> str:
    """Returns the first sentence of an error's text (torch can write a page), or its class if it has no text."""
    sentence = f"{str(error).strip()}\n".splitlines()[0].partition(". ")[0].rstrip(".")
    return sentence or type(error).__name__


def in_one_line(error: Exception) -> str:
    """Returns the text of an error of ifloo in one line, or the class and the text of another error."""
    text = " ".join(str(error).split())
    return text if isinstance(error, IflooError) else f"{type(error).__name__}: {text}"
