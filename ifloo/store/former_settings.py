"""Former names of classes in stored settings, replaced by the current names before settings are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ifloo.store.atomic import JSON

CLASSES = {"CurvatureRoute": "InfluenceFunction"}  # former name: name now, as the key "class" of a settings object
_FORMER = {now: former for former, now in CLASSES.items()}


def current_settings(stored: Mapping[str, JSON]) -> dict[str, JSON]:
    """Returns settings with the current names of classes."""
    return {key: _renamed(value, key, CLASSES) for key, value in stored.items()}


def stamped_settings(settings: Mapping[str, JSON]) -> dict[str, JSON]:
    """Returns settings with the names that classes had when stamps were introduced.

    A stamp is the SHA-256 of this form, so that one written by an earlier release still matches.
    """
    return {key: _renamed(value, key, _FORMER) for key, value in settings.items()}


def _renamed(value: JSON, key: str, names: Mapping[str, str]) -> JSON:
    if isinstance(value, str):
        return names.get(value, value) if key == "class" else value
    if isinstance(value, Mapping):
        return {k: _renamed(v, k, names) for k, v in value.items()}
    if isinstance(value, Sequence):
        return [_renamed(v, "", names) for v in value]
    return value
