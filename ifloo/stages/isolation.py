"""Isolation of work beside a fit: it runs on a copy of the module, and random states are restored afterwards."""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
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
        for value in _nested(vars(part), sys.maxsize):
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
        held_by: Data sets, collate functions and other objects whose own generators are restored too.
    """
    with undisturbed(), ExitStack() as restored:
        for generator in _nested(held_by, SEARCHED_ITEMS):
            if isinstance(generator, _GENERATORS):
                restored.callback(_restoring(generator))
        yield


RandomGenerator: TypeAlias = torch.Generator | np.random.Generator | np.random.RandomState | random.Random
_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)


def _restoring(generator: RandomGenerator) -> Callable[[], object]:
    """Returns a function that restores the present state of a generator."""
    if isinstance(generator, np.random.Generator):
        return partial(setattr, generator.bit_generator, "state", copy.deepcopy(generator.bit_generator.state))
    if isinstance(generator, random.Random):
        return partial(generator.setstate, generator.getstate())
    if isinstance(generator, np.random.RandomState):
        return partial(generator.set_state, generator.get_state())
    return partial(generator.set_state, generator.get_state())


def _nested(value: object, most: int) -> Iterator[object]:
    """Yields an object and what it holds as attributes or items, each once; modules are not searched."""
    level: list[object] = [value]
    seen = {id(value)}
    for _ in range(DEPTH + 1):
        yield from level
        held = [item for one in level for item in _items(one, most)]
        level = [item for item in {id(x): x for x in held}.values() if id(item) not in seen]
        seen |= {id(item) for item in level}


def _items(value: object, most: int) -> list[object]:
    if isinstance(value, (Tensor, np.ndarray, nn.Module, L.Trainer, type, *_GENERATORS)):
        return []
    if isinstance(value, (Mapping, list, tuple, set, frozenset)):
        if len(value) > most:
            return []
        return list(value.values() if isinstance(value, Mapping) else value)
    return list(getattr(value, "__dict__", {}).values())
