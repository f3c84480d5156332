"""Former names of settings in flags and config files: each keeps working, with one warning that gives the new name."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence

from ifloo.errors import InputError
from ifloo.former_names import FormerNameWarning

SETTINGS = {"attribution.further": "attribution.compare_with", "adapt.still": "adapt.skip_training"}
_warned: set[str] = set()


def current_flags(arguments: Sequence[str]) -> list[str]:
    """Returns the command line with the present names of its flags (`--key value`, `--key=value`, `--key+ value`).

    Raises:
        InputError: A setting is given by its former and by its present name.
    """
    given = {word[2:].partition("=")[0].removesuffix("+") for word in arguments if word.startswith("--")}
    for former, now in SETTINGS.items():
        if _any_at(given, former) and _any_at(given, now):
            raise InputError(_both_given(f"--{former}", f"--{now}"))
    return [_current_flag(word) for word in arguments]


def current_keys(config: Mapping[str, object], parent: str = "") -> dict[str, object]:
    """Returns a config, or the part of one below `parent`, with the present names of its keys.

    Raises:
        InputError: A setting is given by its former and by its present name.
    """
    given = set(_paths(config, parent))
    for path in given:
        for former, now in SETTINGS.items():
            if _is_at(path, former) and (present := path.removesuffix(former) + now) in given:
                raise InputError(_both_given(path, present))
    current: dict[str, object] = {}
    for key, value in config.items():
        path = _joined(parent, key)
        name = _current(path)
        inner = current_keys(value, name) if isinstance(value, Mapping) and _may_contain_former(name) else value
        current[name[len(parent) + 1 :] if parent else name] = inner
    return current


def _paths(config: Mapping[str, object], parent: str) -> Iterator[str]:
    """Yields the dotted path of every key at which a former name can stand."""
    for key, value in config.items():
        yield (path := _joined(parent, key))
        if isinstance(value, Mapping) and _may_contain_former(path):
            yield from _paths(value, path)


def _joined(parent: str, key: str) -> str:
    return f"{parent}.{key}" if parent else str(key)


def _is_at(path: str, name: str) -> bool:
    """Returns whether a path is that of a setting, also where a command's name stands before it."""
    return path == name or path.endswith(f".{name}")


def _any_at(given: Collection[str], name: str) -> bool:
    return any(flag == name or flag.startswith(f"{name}.") for flag in given)


def _both_given(former: str, now: str) -> str:
    return f"{former} and {now} are both given, but are one setting.\n  Give {now} alone: {former} is its former name."


def _current_flag(word: str) -> str:
    if not word.startswith("--"):
        return word
    key, equals, value = word[2:].partition("=")
    name, plus = key.removesuffix("+"), "+" if key.endswith("+") else ""
    first = next((old for old in SETTINGS if name == old or name.startswith(f"{old}.")), None)
    return word if first is None else f"--{_current(first)}{name[len(first) :]}{plus}{equals}{value}"


def _current(path: str) -> str:
    """Returns the present name of a setting, also where a command's name stands before it (`fit.adapt.still`)."""
    for former, now in SETTINGS.items():
        if _is_at(path, former):
            if former not in _warned:
                _warned.add(former)
                warnings.warn(f"The setting {former} is now {now}.", FormerNameWarning, stacklevel=2)
            return path.removesuffix(former) + now
    return path


def _may_contain_former(path: str) -> bool:
    """Returns whether a former name can lie below this key: at a group, or at a command that contains groups."""
    groups = {former.partition(".")[0] for former in SETTINGS}
    return path.rpartition(".")[2] in groups or "." not in path
