"""Arguments of model and data in a checkpoint from elsewhere: which may choose what is imported, and their refusal."""

from __future__ import annotations

import inspect
import os
import sys
import textwrap
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from lightning.pytorch.utilities.rank_zero import rank_zero_only

from ifloo.errors import InputError

_KEY = "class_path"  # a mapping with this key is a class to import and construct, wherever the parser meets it
_LEAVES = (str, int, float, complex, bool, bytes, NoneType)
_CONTAINERS = (list, tuple, set, frozenset, dict)


def is_plain(value: object) -> bool:
    """Whether a config can hold the value."""
    if isinstance(value, Mapping):
        return all(map(is_plain, value.values()))
    if isinstance(value, (list, tuple, set)):
        return all(map(is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


class Foreign:
    """Arguments of one class in a checkpoint that the user's runs did not write.

    The parser imports and constructs what a mapping with the key `class_path` names, and imports what a string names
    where a parameter is a class or a callable. A file from elsewhere chooses neither, unless it is trusted.
    """

    def __init__(self, class_: type, group: str, checkpoint: Path, trusted: bool) -> None:
        """Reads the signature of the class.

        Args:
            class_: Class of the model or the data module.
            group: `model` or `data`.
            checkpoint: File of the checkpoint, for messages.
            trusted: Whether the file may choose what is imported.
        """
        self.group, self.checkpoint, self.trusted = group, checkpoint, trusted
        self._parameters = _signature(class_)

    def imports(self, name: str, value: object) -> list[str]:
        """Lists what the parser would import for a plain value; empty where it imports nothing that the file names."""
        if not is_plain(value):
            return []
        if names := [*_classes(value)]:
            return names
        parameter = self._parameters.get(name)
        if parameter is None or value == parameter.default or _admits_text(parameter.annotation):
            return []
        return [] if _closed(parameter.annotation) else [*_texts(value)]

    def parsed(self, name: str, value: object) -> bool:
        """Whether the parser may read the value; otherwise the class is made with the value as it is.

        Raises:
            InputError: If the value names what is to be imported, and the file is not trusted.
        """
        if not is_plain(value):
            return False
        if names := self.imports(name, value):
            if not self.trusted:
                raise InputError(self._refusal(name, value))
            _print_imports(f"{self.group}.{name} of {self.checkpoint} may import {', '.join(names)}")
            return True
        parameter = self._parameters.get(name)
        safe = parameter is not None and (value == parameter.default or _closed(parameter.annotation))
        return name.isidentifier() and (safe or not [*_texts(value)])  # a dotted name is a setting within another one

    def _refusal(self, name: str, value: object) -> str:
        return (
            f"{self.checkpoint}: the argument {self.group}.{name} = {textwrap.shorten(repr(value), 80)} names "
            "what is to be imported, which a checkpoint from elsewhere does not choose.\n"
            f"  Give it yourself: --{self.group}.{name}=...; or --trust_checkpoint, which imports what the file names "
            "and so runs its code: only for a file whose origin you trust."
        )


@rank_zero_only  # of many processes, the first prints
def _print_imports(text: str) -> None:
    print(f"--trust_checkpoint: {text}", file=sys.stderr, flush=True)


def _signature(class_: type) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(class_, eval_str=True).parameters
    except Exception:  # an annotation of the user's may name what is imported for type checkers alone
        return inspect.signature(class_).parameters


def _classes(value: object) -> Iterator[str]:
    """Yields what each key `class_path` within a value names."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            if _KEY in str(key).split("."):
                yield str(part)
            yield from _classes(part)
    elif isinstance(value, (list, tuple, set)):
        for part in value:
            yield from _classes(part)


def _texts(value: object) -> Iterator[str]:
    """Yields the strings within a value; keys are none of them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (Mapping, list, tuple, set)):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(part)


def _closed(annotation: object) -> bool:
    """Whether the annotation admits plain values alone, so that no string is a name to import."""
    if isinstance(annotation, type) and get_origin(annotation) is None:
        return issubclass(annotation, (*_LEAVES, Enum, os.PathLike))
    if annotation is None or get_origin(annotation) is Literal:
        return True
    return _compound(annotation) and all(map(_closed, _parts(annotation)))


def _admits_text(annotation: object) -> bool:
    """Whether the annotation admits a string, or a container with strings, as it is."""
    if annotation in (Any, object, inspect.Parameter.empty) or isinstance(annotation, str):
        return True
    if isinstance(annotation, type) and get_origin(annotation) is None:
        return issubclass(annotation, (str, Enum, os.PathLike)) or annotation in _CONTAINERS
    if get_origin(annotation) is Literal:
        return True
    parts = _parts(annotation)
    return _compound(annotation) and (not parts or any(map(_admits_text, parts)))


def _compound(annotation: object) -> bool:
    """Whether the annotation is a union, or a container with a type of its items."""
    origin = get_origin(annotation)
    if origin in (Union, UnionType, Annotated):
        return True
    return isinstance(origin, type) and any(issubclass(one, origin) for one in _CONTAINERS)


def _parts(annotation: object) -> list[object]:
    """Returns the annotations that a compound one consists of; of a mapping that of its values."""
    parts = [one for one in get_args(annotation) if one is not Ellipsis]
    origin = get_origin(annotation)
    if origin is Annotated:
        return parts[:1]
    mapping = isinstance(origin, type) and issubclass(dict, origin) and not issubclass(list, origin)
    return parts[-1:] if mapping else parts
