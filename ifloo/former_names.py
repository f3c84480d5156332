"""Former public names: each goes on working, with one warning that gives the name to use now."""

from __future__ import annotations

import difflib
import importlib
import warnings
from collections.abc import Callable, Mapping, Sequence


class FormerNameWarning(FutureWarning):
    """A name of an earlier release was used; shown to users by default, as a DeprecationWarning is not."""


def former_names(room: str, now: Mapping[str, str], names: Sequence[str]) -> Callable[[str], object]:
    """Makes the `__getattr__` of a package that still answers to its former names (PEP 562).

    A former name is imported when it is asked for, so that a package may name what has moved to a floor above its own.

    Args:
        room: Dotted name of the package.
        now: Dotted path of what each former name stands for, by former name.
        names: Public names of the package, to suggest from.

    Returns:
        A function from a name to what it stands for. It warns once for each former name, and raises an
        `AttributeError` that lists the nearest public names for any other.
    """
    found: dict[str, object] = {}

    def attribute(name: str) -> object:
        if name not in now:
            raise AttributeError(unknown_name(room, name, names))
        if name not in found:
            where, _, new = now[name].rpartition(".")
            warnings.warn(f"{room}.{name} is now {now[name]}.", FormerNameWarning, stacklevel=2)
            found[name] = getattr(importlib.import_module(where), new)
        return found[name]

    return attribute


def unknown_name(room: str, name: str, names: Sequence[str]) -> str:
    """Describes a name that a package does not have, with the nearest ones that it has."""
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    nearest = f" The nearest are: {', '.join(close)}." if close else ""
    return f"module {room!r} has no attribute {name!r}.{nearest}"
