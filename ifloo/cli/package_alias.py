"""`pytorch_lightning` as another name of `lightning.pytorch`, so that projects of either import mix with ifloo."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

ALIAS, TARGET = "pytorch_lightning", "lightning.pytorch"


@contextmanager
def one_lightning() -> Generator[None, None, None]:
    """Lets `import pytorch_lightning` give the modules of `lightning.pytorch` until exit.

    Both packages hold the same code, but each defines its own classes: a module of one is no module for a Trainer of
    the other. What was imported under that name before stays so for those who have it, and is back after exit.
    """
    before = {name: sys.modules.pop(name) for name in _imported()}
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in _imported():
            del sys.modules[name]
        sys.modules.update(before)


def _imported() -> list[str]:
    return [name for name in sys.modules if name == ALIAS or name.startswith(f"{ALIAS}.")]


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != ALIAS and not fullname.startswith(f"{ALIAS}."):
            return None
        return ModuleSpec(fullname, _Loader(TARGET + fullname.removeprefix(ALIAS)))


class _Loader(Loader):
    """Gives a module that has another name; the import system sets the name's spec on it, which is undone."""

    def __init__(self, name: str) -> None:
        self.name = name

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(self.name)
        self.spec, self.loader = module.__spec__, module.__loader__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__, module.__loader__ = self.spec, self.loader
