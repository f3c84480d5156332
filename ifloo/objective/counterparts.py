"""Classes that Lightning defines twice, under `lightning.pytorch` and `pytorch_lightning`; neither is imported here."""

from __future__ import annotations

import inspect
import sys
from functools import cache
from types import ModuleType
from typing import TypeVar

ClassT = TypeVar("ClassT")
_PACKAGES = ("lightning.pytorch", "pytorch_lightning")


def counterparts(base: type[ClassT]) -> tuple[type[ClassT], ...]:
    """Returns a class and, where its package has a twin that is imported, the class of the same place there."""
    for own, other in (_PACKAGES, _PACKAGES[::-1]):
        if base.__module__.startswith(f"{own}."):
            module = sys.modules.get(other + base.__module__.removeprefix(own))
            return (base,) if module is None else (base, _class_in(module, base.__name__))
    return (base,)


@cache
def _class_in(module: ModuleType, name: str) -> type:
    found: type = dict(inspect.getmembers(module, inspect.isclass))[name]
    return found
