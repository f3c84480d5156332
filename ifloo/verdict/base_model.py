"""The base model that results are of, as the manifest tells it."""

from __future__ import annotations

from collections.abc import Mapping

from ifloo.errors import InputError
from ifloo.store import JSON

_SETTINGS = ("weights", "data", "objective")


def difference(one: Mapping[str, JSON], other: Mapping[str, JSON]) -> tuple[str, JSON, JSON] | None:
    """Give the first setting of the base model on which two sections of the manifest differ.

    Returns:
        The name of the setting and both values; None where all settings that both sections hold are equal.
    """
    for name in _SETTINGS:
        if name in one and name in other and one[name] != other[name]:
            return name, one[name], other[name]
    return None


def refuse_another(compared: Mapping[str, JSON], base: Mapping[str, JSON], subject: str, again: str) -> None:
    """Pass where results are of the base model that was scored.

    Args:
        compared: Settings that the results were made with.
        base: Settings of the scores.
        subject: Subject and verb of the error: "its scores are".
        again: Next step that the error names.

    Raises:
        InputError: they are of another base model.
    """
    if found := difference(compared, base):
        name, value, expected = found
        raise InputError(f"{subject} of another base model ({name}: {value}, not {expected}).\n{again}")
