"""The two kinds of errors, which the command line turns into exit codes 2 and 1, and helpers for their messages."""

from collections.abc import Sequence

__all__ = ["IflooError", "InputError", "WorkError"]  # public; the functions are helpers of ifloo

NAMED = 3  # number of names listed in a message; the others are only counted


class IflooError(Exception):
    """Base class of all errors that ifloo raises; the text tells what was expected, what came, where, and a remedy."""


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
