"""Detection of the methods by which a module or data module overrides those of Lightning."""

from __future__ import annotations

from collections.abc import Sequence

from ifloo.objective.counterparts import counterparts


def overridden(owner: object, names: Sequence[str], *bases: type) -> list[str]:
    """Lists the named methods of `owner` that are not inherited from one of `bases`.

    Args:
        owner: A module or data module; for None and for objects without these methods the list is empty.
        names: Names of methods.
        bases: Classes whose methods are defaults, which do not count as overrides; nor do those of their counterparts
            in the other Lightning package.
    """
    defaults: list[type] = []
    for base in bases:
        defaults.extend(counterparts(base))
    return [name for name in names if _is_own(owner, name, defaults)]


def _is_own(owner: object, name: str, bases: Sequence[type]) -> bool:
    if name in getattr(owner, "__dict__", {}):
        return True
    method = getattr(type(owner), name, None)
    return method is not None and all(method is not getattr(base, name, None) for base in bases)
