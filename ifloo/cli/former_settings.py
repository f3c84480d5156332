"""Former names of settings in flags and config files: each keeps working, with one warning that gives the new name."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

from ifloo.former_names import FormerNameWarning

SETTINGS = {"attribution.further": "attribution.compare_with", "adapt.still": "adapt.skip_training"}
_warned: set[str] = set()


def current_flags(arguments: Sequence[str]) -> list[str]:
    """Returns the command line with the present names of its flags (`--key value`, `--key=value`, `--key+ value`)."""
    return [_current_flag(word) for word in arguments]


def current_keys(config: Mapping[str, object], parent: str = "") -> dict[str, object]:
    """Returns a config, or the part of one below `parent`, with the present names of its keys."""
    current: dict[str, object] = {}
    for key, value in config.items():
        path = f"{parent}.{key}" if parent else str(key)
        name = _current(path)
        inner = current_keys(value, name) if isinstance(value, Mapping) and _may_contain_former(name) else value
        current[name.rpartition(".")[2]] = inner
    return current


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
        if path == former or path.endswith(f".{former}"):
            if former not in _warned:
                _warned.add(former)
                warnings.warn(f"The setting {former} is now {now}.", FormerNameWarning, stacklevel=2)
            return path.removesuffix(former) + now
    return path


def _may_contain_former(path: str) -> bool:
    """Returns whether a former name can lie below this key: at a group, or at a command that contains groups."""
    groups = {former.partition(".")[0] for former in SETTINGS}
    return path.rpartition(".")[2] in groups or "." not in path
