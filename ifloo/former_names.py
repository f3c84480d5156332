"""Former public names, which continue to work with one warning that gives the current name."""

from __future__ import annotations

import difflib
import importlib
import warnings
from collections.abc import Callable, Mapping, Sequence


class FormerNameWarning(FutureWarning):
    """Use of a name of an earlier release; shown to users by default, unlike a DeprecationWarning."""


def former_names(package: str, now: Mapping[str, str], names: Sequence[str]) -> Callable[[str], object]:
    """Returns the `__getattr__` of a package that supports its former names (PEP 562).

    A former name is imported on first use, so that it can stand for an object of a package in a higher layer.

    Args:
        package: Dotted name of the package.
        now: Mapping from each former name to the dotted path of the object it stands for.
        names: Public names of the package, from which suggestions are taken.

    Returns:
        A function from a former name to its object. It warns once for each former name, and raises an
        `AttributeError` that lists the nearest public names for any other name.
    """
    resolved: dict[str, object] = {}

    def attribute(name: str) -> object:
        if name not in now:
            raise AttributeError(unknown_name(package, name, names))
        if name not in resolved:
            where, _, new = now[name].rpartition(".")
            warnings.warn(f"{package}.{name} is now {now[name]}.", FormerNameWarning, stacklevel=2)
            resolved[name] = getattr(importlib.import_module(where), new)
        return resolved[name]

    return attribute


def unknown_name(package: str, name: str, names: Sequence[str]) -> str:
    """Returns the error message for a name that a package does not have, with the nearest names that it has."""
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    nearest = f" The nearest are: {', '.join(close)}." if close else ""
    return f"module {package!r} has no attribute {name!r}.{nearest}"
