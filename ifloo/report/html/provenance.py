"""Settings and versions by which the numbers were computed, from the manifest."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ifloo.store.manifest import flattened

_FIRST = ("fit", "influence", "loo")  # order in which the stages run
_LONGEST = 8  # longest list that is written out in full, entries
_SHOWN_ONCE = ("versions", "platform", "git_revision")


@dataclass(frozen=True)
class Stage:
    """One section of the manifest.

    Attributes:
        name: Name of the section.
        time: Time when its results were computed, UTC.
        compared: Settings that change a number, without those that an earlier stage shows.
        recorded: Settings that change no number.
        shared: Number of settings left out because an earlier stage shows the same value.
    """

    name: str
    time: str
    compared: Sequence[tuple[str, str]]
    recorded: Sequence[tuple[str, str]]
    shared: int


@dataclass(frozen=True)
class Provenance:
    """All sections of a manifest.

    Attributes:
        summary: Most important entries.
        stages: Sections in the order in which the stages run, then by name.
    """

    summary: Sequence[tuple[str, str]]
    stages: Sequence[Stage]


def provenance(sections: Mapping[str, Mapping[str, Any]]) -> Provenance:
    """Converts the sections of a manifest to text, without settings that an earlier section has with equal value."""
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
    # Stages may have been run with different versions; then all versions are listed.
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
