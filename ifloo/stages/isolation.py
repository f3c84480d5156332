"""Isolation of work beside a fit: it runs on a copy of the module, and random states are restored afterwards."""

from __future__ import annotations

import copy
import random
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager
from functools import partial
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import TypeAlias, TypeVar

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ifloo.errors import InputError
from ifloo.objective.randomness import undisturbed

ModuleT = TypeVar("ModuleT", bound=nn.Module)
DEPTH = 6  # levels of nested attributes, lists and dicts that are searched
SEARCHED_ITEMS = 64  # longest list or dict of a data set that is searched for generators; longer ones hold samples
_SHARED = (L.Trainer, L.LightningDataModule, Dataset, DataLoader)  # read only, and large


def detached(module: ModuleT) -> ModuleT:
    """Returns a copy of a module during a fit, without its Trainer; data sets that it holds are shared, not copied.

    Raises:
        InputError: The module holds an object that cannot be copied.
    """
    memo: dict[int, object] = {}
    for part in module.modules():
        for value in _nested([vars(part)], partial(_items, most=sys.maxsize)):
            if isinstance(value, _SHARED):
                memo[id(value)] = value
            elif isinstance(value, Tensor) and value.grad_fn is not None:  # such as losses kept for the end of an epoch
                memo[id(value)] = value.detach().clone()
    try:
        return copy.deepcopy(module, memo)
    except Exception as error:
        raise InputError(
            f"{type(module).__name__} cannot be copied (copy.deepcopy): {type(error).__name__}: {error}\n"
            "  Influence is scored on a copy, so that the fit does not change. Keep objects that cannot be copied "
            "(files, locks) out of the module."
        ) from error


@contextmanager
def undisturbed_with(*held_by: object) -> Generator[None, None, None]:
    """Restores all random states on leaving the context.

    Args:
        held_by: Data sets, collate functions, modules and other objects whose own generators are restored too, also
            those that their functions reach: as a variable, default value, attribute of a class or global name.
    """
    held = [x for one in held_by for x in (_held_by(one) if isinstance(one, nn.Module) else [one])]
    with undisturbed(), ExitStack() as restored:
        for generator in _nested(held, _reached):
            if isinstance(generator, _GENERATORS):
                restored.callback(_restoring(generator))
        yield


def reached_by(*held_by: object) -> Iterator[object]:
    """Yields objects, what they hold and what their functions reach, down to some depth.

    Args:
        held_by: Data sets, collate functions, samplers and other objects.
    """
    return _nested(held_by, _reached)


RandomGenerator: TypeAlias = torch.Generator | np.random.Generator | np.random.RandomState | random.Random
_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
_FUNCTIONS = (FunctionType, staticmethod, classmethod)
_LIBRARIES = ("builtins", "torch", "lightning", "pytorch_lightning", "numpy", "abc", "typing", "ifloo")
_EMPTY = CellType()  # of a variable without value


def _restoring(generator: RandomGenerator) -> Callable[[], object]:
    """Returns a function that restores the present state of a generator."""
    if isinstance(generator, np.random.Generator):
        return partial(setattr, generator.bit_generator, "state", copy.deepcopy(generator.bit_generator.state))
    if isinstance(generator, random.Random):
        return partial(generator.setstate, generator.getstate())
    if isinstance(generator, np.random.RandomState):
        return partial(generator.set_state, generator.get_state())
    return partial(generator.set_state, generator.get_state())


def _nested(values: Iterable[object], held_by: Callable[[object], list[object]]) -> Iterator[object]:
    """Yields objects and what they hold, each once, down to some depth; modules are not searched."""
    level = list({id(x): x for x in values}.values())
    seen = {id(x) for x in level}
    for _ in range(DEPTH + 1):
        yield from level
        held = [item for one in level for item in held_by(one)]
        level = [item for item in {id(x): x for x in held}.values() if id(item) not in seen]
        seen |= {id(item) for item in level}


def _items(value: object, most: int) -> list[object]:
    """Returns the attributes or items of an object; none of a list or dict of more items."""
    if isinstance(value, (Tensor, np.ndarray, nn.Module, L.Trainer, type, *_GENERATORS)):
        return []
    if isinstance(value, (Mapping, list, tuple, set, frozenset)):
        if len(value) > most:
            return []
        return list(value.values() if isinstance(value, Mapping) else value)
    return list(getattr(value, "__dict__", {}).values())


def _held_by(module: nn.Module) -> list[object]:
    """Returns what a module and its layers hold."""
    return [value for layer in module.modules() for value in vars(layer).values()]


def _reached(value: object) -> list[object]:
    """Returns what an object holds, and what its functions reach."""
    if isinstance(value, ModuleType):
        return []
    if isinstance(value, MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, (staticmethod, classmethod)):
        return [value.__func__]
    if isinstance(value, partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, FunctionType):
        return _reached_by(value)
    classes = [base for base in type(value).__mro__ if base.__module__.partition(".")[0] not in _LIBRARIES]
    attributes = [
        x for base in classes for x in vars(base).values() if isinstance(x, (*_GENERATORS, *_FUNCTIONS, Executor))
    ]
    return [*_items(value, SEARCHED_ITEMS), *attributes]


def _reached_by(function: FunctionType) -> list[object]:
    """Returns what a function has captured, its default values, and its global generators, functions and threads."""
    captured = [cell.cell_contents for cell in function.__closure__ or () if cell != _EMPTY]
    defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    known = [function.__globals__.get(name) for name in _names_in(function.__code__)]
    return [
        *captured,
        *defaults,
        *(x for x in known if isinstance(x, (*_GENERATORS, FunctionType, Executor, threading.Thread))),
    ]


def _names_in(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _names_in(inner)
