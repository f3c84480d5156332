"""The two kinds of failure a user meets, which the command line turns into exit codes 2 and 1; words for messages."""

from collections.abc import Sequence

__all__ = ["IflooError", "InputError", "WorkError"]  # public; the functions are helpers of ifloo

NAMED = 3  # names given in a message before the rest is counted


class IflooError(Exception):
    """Root of the errors ifloo raises on purpose; its text says what was expected, what came, where, and what to do."""


class InputError(IflooError, ValueError):
    """What was given is wrong: a flag, a config, an input file, existing results of other settings (exit code 2)."""


class WorkError(IflooError, RuntimeError):
    """What was given is fine and the work failed: a solve that did not converge, a disk that is full (exit code 1)."""


def summarise(names: Sequence[str]) -> str:
    """The first few names, and how many there are."""
    rest = f", ... ({len(names)} in all)" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + rest


def first_sentence(error: Exception) -> str:
    """The first sentence of what torch says, which may go on for a page; the class of an error without a text."""
    sentence = f"{str(error).strip()}\n".splitlines()[0].partition(". ")[0].rstrip(".")
    return sentence or type(error).__name__
