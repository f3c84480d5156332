"""Methods of a module or data module that its author wrote over those of Lightning."""

from __future__ import annotations

from collections.abc import Sequence


def overridden(owner: object, names: Sequence[str], *bases: type) -> list[str]:
    """Which of these methods `owner` has that are not those of one of `bases`.

    Args:
        owner: A module or data module; None and objects without these methods have none of their own.
        names: Names of methods.
        bases: Classes whose methods do nothing that matters.
    """
    return [name for name in names if _is_own(owner, name, bases)]


def _is_own(owner: object, name: str, bases: Sequence[type]) -> bool:
    if name in getattr(owner, "__dict__", {}):
        return True
    method = getattr(type(owner), name, None)
    return method is not None and all(method is not getattr(base, name, None) for base in bases)
