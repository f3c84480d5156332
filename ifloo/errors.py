"""The two kinds of errors, which the command line turns into exit codes 2 and 1, and helpers for their messages."""

import re
from collections.abc import Generator, Sequence
from contextlib import contextmanager

__all__ = ["IflooError", "InputError", "WorkError"]  # public; the functions are helpers of ifloo

NAMED = 3  # number of names listed in a message; the others are only counted

_NUMBER = r"[-+]?(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?(?!\w|\.\d| times)|K\b"  # "5 times" is not a value
_TRUTH = r"(?:[tT]rue|[fF]alse)\b"
_LIST = r"\"\[[^\"]*\]\"|'\[[^']*\]'|\[[^\]]*\]"
_NAME = r"[A-Za-z_]\w+(?:\.\w+)+"
_IDS = r"(?:auto|third|positions)\b"
_DTYPE = r"(?:float32|float64)\b"
_NONE = r"(?!)"  # no value follows

# Flag of a command: argument of the Python interface, form of the values that are translated with it.
SETTINGS = {
    "--adapt.accept_objective": ("accept_objective", _TRUTH),
    "--adapt.draws": ("draws", _NUMBER),
    "--adapt.ids": ("ids", _IDS),
    "--adapt.l2": ("l2", _NUMBER),
    "--adapt.memory_share": ("share", _NUMBER),
    "--adapt.output_losses": ("output_losses", _NAME),
    "--adapt.outputs": ("outputs", _NAME),
    "--adapt.penalty": ("penalty", _NAME),
    "--adapt.sample_losses": ("sample_losses", _NAME),
    "--attribution.corrected": ("corrected", _TRUTH),
    "--attribution.damping": ("damping", _NUMBER),
    "--attribution.dtype": ("dtype", _DTYPE),
    "--attribution.method.class_path": ("method", _NAME),
    "--attribution.parameters": ("parameters", _LIST),
    "--attribution.self_influence": ("self_influence", _TRUTH),
    "--attribution.test_ids": ("test_ids", rf"{_LIST}|all\b"),
    "--output_dir": ("output_dir", _NONE),
    "--overwrite": ("overwrite=True", _NONE),
    "--seed_everything": ("lightning.seed_everything", _NONE),
}
_OF_RUNS = ("--output_dir", "--overwrite")  # arguments of InfluenceCallback alone; written without backticks
# A command with the rest of its sentence keeps its flags: they can be given to nothing else.
_COMMAND = r"`ifloo [^`]*`(?:[^.\n]|\.(?=\S))*"
_FLAG = re.compile(
    "|".join(
        [_COMMAND]
        + [
            f"(?P<f{k}>{re.escape(flag)})(?!\\w|\\.\\w)(?:[ =](?P<v{k}>{form}))?"
            for k, (flag, (_, form)) in enumerate(SETTINGS.items())
        ]
    )
)
_state = {"commands": 0}  # of this process, whatever the thread


@contextmanager
def command_line(by_command: bool = True) -> Generator[None, None, None]:
    """Lets the messages within name settings as the flags of a command; elsewhere they name arguments.

    Args:
        by_command: Whether this is the work of a command; False changes nothing.
    """
    _state["commands"] += by_command
    try:
        yield
    finally:
        _state["commands"] -= by_command


def within_command() -> bool:
    """Returns whether messages name flags; a worker process gets this with its work."""
    return _state["commands"] > 0


def settings_named(text: str) -> str:
    """Returns a message that names settings as its reader gives them.

    Args:
        text: Message with the flags of the command line, such as `--adapt.l2 0.01`.

    Returns:
        The same message within `command_line()`; else with the arguments of the Python interface, such as `l2=0.01`.
    """
    return text if within_command() else arguments_named(text, kept=_OF_RUNS)


def arguments_named(text: str, kept: Sequence[str] = ()) -> str:
    """Returns a message with the arguments of the Python interface in place of the flags of the command line.

    Args:
        text: Message with flags.
        kept: Flags that stay as they are.
    """
    return _FLAG.sub(lambda found: _argument(found, kept), text)


def _argument(found: re.Match[str], kept: Sequence[str]) -> str:
    for k, (flag, (name, form)) in enumerate(SETTINGS.items()):
        if found[f"f{k}"] is None or flag in kept:
            continue
        if (value := found[f"v{k}"]) is not None:
            return f"{name}={_in_python(value, form, name)}"
        quoted = found.string[found.start() - 1 : found.start()] == "`"
        return name if quoted or flag in _OF_RUNS else f"`{name}`"
    return found[0]  # a command


def _in_python(value: str, form: str, name: str) -> str:
    if form in (_IDS, _DTYPE) or value == "all":
        return f"'{value}'"
    if form == _TRUTH:
        return value.capitalize()
    if name == "method":
        return f"{value}()"
    return value.strip("\"'")


class IflooError(Exception):
    """Base class of all errors that ifloo raises; the text tells what was expected, what came, where, and a remedy.

    The text may name settings as flags. It is kept so, also between threads and processes, and where it is shown to a
    caller from Python the flags become arguments.
    """

    def __init__(self, text: str = "") -> None:
        """Takes the text of the error."""
        super().__init__(text)

    def __str__(self) -> str:
        """Returns the text as its reader gives settings."""
        return settings_named(super().__str__())


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
