"""What the numbers were made with, from the manifest."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ifloo.store.manifest import flattened

_FIRST = ("fit", "influence", "loo")  # in the order in which things happen
_LONGEST = 8  # entries of a list that are written out
_SHOWN_ONCE = ("versions", "platform", "git_revision")


@dataclass(frozen=True)
class Stage:
    """One section of the manifest.

    Attributes:
        name: of the section.
        time: when its results were made, UTC.
        compared: settings that change a number, without those of an earlier stage.
        recorded: the others.
        shared: how many settings are left out because an earlier stage shows the same.
    """

    name: str
    time: str
    compared: Sequence[tuple[str, str]]
    recorded: Sequence[tuple[str, str]]
    shared: int


@dataclass(frozen=True)
class Provenance:
    """All sections.

    Attributes:
        summary: what most readers look for.
        stages: the sections in the order in which things happen, then by name.
    """

    summary: Sequence[tuple[str, str]]
    stages: Sequence[Stage]


def provenance(sections: Mapping[str, Mapping[str, Any]]) -> Provenance:
    """The sections of a manifest as text, in which no setting stands twice with the same value."""
    names = [name for name in _FIRST if name in sections] + sorted(set(sections) - set(_FIRST))
    seen: dict[str, str] = {}
    stages = []
    for name in names:
        compared = _texts(sections[name].get("compared") or {})
        recorded = dict(sections[name].get("recorded") or {})
        time = str(recorded.pop("time", ""))
        new = {key: value for key, value in compared.items() if seen.get(key) != value}
        rest = _texts({key: value for key, value in recorded.items() if key not in _SHOWN_ONCE})
        stages.append(Stage(name, time, list(new.items()), list(rest.items()), len(compared) - len(new)))
        seen |= compared
    return Provenance(_summary(sections, names), stages)


def _summary(sections: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> list[tuple[str, str]]:
    if not names:
        return []
    settings, last = sections[names[0]].get("compared") or {}, sections[names[-1]].get("recorded") or {}
    versions: dict[str, list[str]] = {}
    for name in names:
        for package, version in ((sections[name].get("recorded") or {}).get("versions") or {}).items():
            if str(version) not in versions.setdefault(package, []):
                versions[package].append(str(version))
    # Stages may have been run with different versions; then all of them are named.
    packages = ", ".join(f"{package} {' and '.join(found)}" for package, found in versions.items())
    found = {
        "model": settings.get("model"),
        "training data (SHA-256)": settings.get("data"),
        "weights (SHA-256)": settings.get("weights"),
        "seed": settings.get("seed"),
        "versions": packages,
        "platform": last.get("platform"),
        "git revision of ifloo": last.get("git_revision"),
    }
    return [(name, _text(value)) for name, value in found.items() if value not in (None, "")]


def _texts(settings: Mapping[str, object]) -> dict[str, str]:
    return {name: _text(value) for name, value in flattened(settings).items()}


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and len(value) > _LONGEST:
        shown = ", ".join(json.dumps(item, ensure_ascii=False) for item in value[:_LONGEST])
        return f"[{shown}, … {len(value)} in all]"
    return json.dumps(value, ensure_ascii=False)
