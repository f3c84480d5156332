"""Checks, by the manifest, that results belong to the same base model."""

from __future__ import annotations

from collections.abc import Mapping

from ifloo.errors import InputError
from ifloo.store import JSON

_SETTINGS = ("weights", "data", "objective")  # settings that identify a base model


def difference(one: Mapping[str, JSON], other: Mapping[str, JSON]) -> tuple[str, JSON, JSON] | None:
    """Finds the first setting of the base model in which two sections of the manifest differ.

    Returns:
        The name of the setting and both values; None if all settings that both sections hold are equal.
    """
    for name in _SETTINGS:
        if name in one and name in other and one[name] != other[name]:
            return name, one[name], other[name]
    return None


def check_base_model(compared: Mapping[str, JSON], base: Mapping[str, JSON], subject: str, remedy: str) -> None:
    """Checks that results belong to the base model that was scored.

    Args:
        compared: Settings of the results.
        base: Settings of the scores.
        subject: Subject and verb of the error message: "its scores are".
        remedy: Next step in the error message.

    Raises:
        InputError: If the results belong to another base model.
    """
    if found := difference(compared, base):
        name, value, expected = found
        raise InputError(f"{subject} of another base model ({name}: {value}, not {expected}).\n{remedy}")
