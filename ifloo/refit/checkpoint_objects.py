"""Objects in a checkpoint file beside tensors and plain values, found without running any code that the file names."""

from __future__ import annotations

import hashlib
import pickle
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from torch.serialization import get_unsafe_globals_in_checkpoint

SHOWN = 5  # fields in a message


class Field(NamedTuple):
    """A value of a checkpoint that is no plain value.

    Attributes:
        name: Dotted keys that lead to it.
        kind: Dotted name of its class or function.
    """

    name: str
    kind: str


def imports_of(path: Path) -> list[str]:
    """Lists what reading the file with its objects would import, beyond what torch reads from any file.

    Raises:
        ValueError: If the file is in torch's format of before 1.6, which does not tell.
    """
    return sorted(get_unsafe_globals_in_checkpoint(path))


def trust_notice(path: Path) -> str | None:
    """Describes a file that is about to be read with its objects, in one line; None if it holds plain values alone."""
    try:
        imports = ", ".join(imports_of(path))
    except Exception:  # a damaged file, or one of an old format, may raise any exception
        imports = "what it names (its format does not tell)"
    if not imports:
        return None
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return f"{path} (sha256 {digest.hexdigest()}) is read with its objects, which imports {imports}"


def object_fields(path: Path) -> list[Field]:
    """Lists the fields whose values are objects, by a reading in which every class is replaced by a placeholder."""
    unsafe = set(imports_of(path))
    return [Field(field, kind) for field, kind in _placeholders(_outline(path), "") if kind in unsafe]


def has_weights(path: Path) -> bool:
    """Tells whether a readable file is a mapping with the entry `state_dict`, as a checkpoint of Lightning is."""
    content = _outline(path)
    return isinstance(content, Mapping) and "state_dict" in content


def _outline(path: Path) -> object:
    """Reads a file with a placeholder in the place of each class that it names, and without tensors."""
    with zipfile.ZipFile(path) as archive:
        (name,) = [one for one in archive.namelist() if one.endswith("/data.pkl")]
        with archive.open(name) as file:
            return _PlaceholderUnpickler(file).load()


def described(path: Path) -> str | None:
    """Describes the objects in a checkpoint in one line; None if there are none, or the file cannot be read."""
    try:
        fields = object_fields(path)
    except Exception:  # a damaged file may raise any exception
        return None
    if not fields:
        return None
    more = f", and {len(fields) - SHOWN} more" if len(fields) > SHOWN else ""
    return ", ".join(f"{one.name or 'the whole file'} is a {one.kind}" for one in fields[:SHOWN]) + more


class _Placeholder:
    """Stands for an object or class that a file names; accepts whatever pickle does to it."""

    kind = ""

    def __new__(cls, *_: object, **__: object) -> _Placeholder:
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...

    def __setitem__(self, key: object, value: object) -> None: ...

    def __call__(self, *_: object, **__: object) -> _Placeholder:
        return self

    def append(self, value: object) -> None: ...

    def extend(self, values: object) -> None: ...

    def add(self, value: object) -> None: ...


class _PlaceholderUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type:
        """Returns a placeholder; torch writes names as Python 2 had them, which are given by their present form."""
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        return type(name, (_Placeholder,), {"kind": f"{module}.{name}"})

    def persistent_load(self, _: object) -> None:
        """Reads no tensor."""


def _placeholders(value: object, at: str) -> Iterator[tuple[str, str]]:
    """Yields place and kind of each placeholder within dictionaries and lists."""
    if isinstance(value, _Placeholder) or (isinstance(value, type) and issubclass(value, _Placeholder)):
        yield at, value.kind
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _placeholders(key, at)
            yield from _placeholders(part, f"{at}.{key}" if at else str(key))
    elif isinstance(value, (list, tuple, set, frozenset)):
        for k, part in enumerate(value):
            yield from _placeholders(part, f"{at}[{k}]")
