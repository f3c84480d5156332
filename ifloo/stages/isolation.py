"""Work beside a fit that leaves no trace in it: on a copy of the module, all random states as they were afterwards."""

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
DEPTH = 6  # how far inside each other attributes, lists and dicts are looked into
SEARCHED_ITEMS = 64  # longest list or dict of a data set that is searched for generators; longer ones hold samples
_SHARED = (L.Trainer, L.LightningDataModule, Dataset, DataLoader)  # read only, and large


def detached(module: ModuleT) -> ModuleT:
    """A copy of a module in the midst of a fit, without its Trainer; data sets it holds are shared, not copied.

    Raises:
        InputError: it holds something that cannot be copied.
    """
    memo: dict[int, object] = {}
    for part in module.modules():
        for value in _inside(vars(part), sys.maxsize):
            if isinstance(value, _SHARED):
                memo[id(value)] = value
            elif isinstance(value, Tensor) and value.grad_fn is not None:  # such as losses kept for the epoch's end
                memo[id(value)] = value.detach().clone()
    try:
        return copy.deepcopy(module, memo)
    except Exception as error:
        raise InputError(
            f"{type(module).__name__} cannot be copied (copy.deepcopy): {type(error).__name__}: {error}\n"
            "  Influence is scored on a copy, so that the fit never notices. Keep what cannot be copied (files, locks) "
            "out of the module."
        ) from error


@contextmanager
def undisturbed_with(*held_by: object) -> Generator[None, None, None]:
    """On leaving, all random states are those of before.

    Args:
        held_by: data sets, collate functions, ..., whose own generators go back too.
    """
    with undisturbed(), ExitStack() as back:
        for generator in _inside(held_by, SEARCHED_ITEMS):
            if isinstance(generator, _GENERATORS):
                back.callback(_restoring(generator))
        yield


RandomGenerator: TypeAlias = torch.Generator | np.random.Generator | np.random.RandomState | random.Random
_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)


def _restoring(generator: RandomGenerator) -> Callable[[], object]:
    """A function that puts a generator's present state back."""
    if isinstance(generator, np.random.Generator):
        return partial(setattr, generator.bit_generator, "state", copy.deepcopy(generator.bit_generator.state))
    if isinstance(generator, random.Random):
        return partial(generator.setstate, generator.getstate())
    if isinstance(generator, np.random.RandomState):
        return partial(generator.set_state, generator.get_state())
    return partial(generator.set_state, generator.get_state())


def _inside(value: object, most: int) -> Iterator[object]:
    """An object and what it holds, as attributes or items, each once; modules are not entered."""
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
