"""State of a user's layers that passes change: lists that grow, counters, small buffers; all as before on exit."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)
SMALL = 1000  # entries of the longest list or tensor that is copied
_OF_MODULE = frozenset(vars(nn.Module()))  # attributes of nn.Module itself, which functional_call exchanges
_LIBRARIES = ("torch", "torchmetrics", "transformers", "ifloo")  # their layers keep no results


def copied(module: ModuleT) -> ModuleT:
    """Copies a module; what its layers keep of a pass, such as the last value of a metric, is copied without graph."""
    kept = [value for layer in module.modules() for value in vars(layer).values() if isinstance(value, Tensor)]
    return copy.deepcopy(module, {id(value): value.detach().clone() for value in kept if value.grad_fn is not None})


@contextmanager
def containers_apart(module: nn.Module) -> Generator[None, None, None]:
    """Lets the user's layers work on copies of their lists, dicts and sets until exit.

    A training step that keeps its loss in a list would keep the graph of every pass, and tensors of transforms of
    torch.func. A list too long to be copied is cut to its former length on exit.
    """
    before: list[tuple[dict[str, object], str, object]] = []
    long: list[tuple[list[object], int]] = []
    for layer in _users_layers(module):
        attributes = vars(layer)
        for name, value in [*attributes.items()]:
            if name in _OF_MODULE or type(value) not in (list, dict, set, deque):
                continue
            assert isinstance(value, (list, dict, set, deque))
            if len(value) <= SMALL:
                before.append((attributes, name, value))
                attributes[name] = value.copy()
            elif isinstance(value, list):
                long.append((value, len(value)))
    try:
        yield
    finally:
        for attributes, name, value in before:
            attributes[name] = value
        for value, length in long:
            del value[length:]


@contextmanager
def numbers_kept(module: nn.Module) -> Generator[None, None, None]:
    """Gives counters, small tensors and small buffers of the user's layers their former values on exit.

    A loss that reads a counter, such as a weight that grows with the steps, is then that at the end of the fit.
    """
    before = [
        (values, name, value, _content(value))
        for layer in _users_layers(module)
        for values in (vars(layer), layer._buffers)
        for name, value in values.items()
        if name != "training" and _is_number(value)
    ]
    try:
        yield
    finally:
        for values, name, value, content in before:
            values[name] = value
            if isinstance(value, Tensor) and content is not None and value._version != content[1]:
                with torch.no_grad():
                    value.copy_(content[0])


def _is_number(value: object) -> bool:
    if isinstance(value, Tensor):  # a tensor made in inference mode has no version
        return value.numel() <= SMALL and not isinstance(value, nn.Parameter) and not value.is_inference()
    return isinstance(value, (int, float))


def _content(value: object) -> tuple[Tensor, int] | None:
    """Returns a copy of a tensor and its version, by which a change in place is seen."""
    return (value.detach().clone(), value._version) if isinstance(value, Tensor) else None


def _users_layers(module: nn.Module) -> Iterator[nn.Module]:
    return (layer for layer in module.modules() if type(layer).__module__.partition(".")[0] not in _LIBRARIES)
