"""State of a user's layers that passes change: lists that grow, counters, buffers; all as before on exit."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from ifloo.objective.forms import with_items

ModuleT = TypeVar("ModuleT", bound=nn.Module)
_Grown: TypeAlias = "list[object] | dict[object, object]"
_Container: TypeAlias = "_Grown | set[object] | deque[object]"
SMALL = 1000  # entries of the longest list or dict that is copied
COPIED_THERE = 64 << 20  # bytes of the largest tensor whose copy stays on its device; other copies are on the host
_OF_MODULE = frozenset(vars(nn.Module()))  # attributes of nn.Module itself, which functional_call exchanges
_LIBRARIES = ("torch", "torchmetrics", "transformers", "ifloo")  # their layers keep no results


def copied(module: ModuleT) -> ModuleT:
    """Copies a module; what its layers keep of a pass, such as the last value of a metric, is copied without graph."""
    kept = [x for layer in module.modules() for x in _tensors_in([*_own(vars(layer)).values()])]
    return copy.deepcopy(module, {id(x): x.detach().clone() for x in kept if x.grad_fn is not None})


@contextmanager
def containers_apart(module: nn.Module) -> Generator[None, None, None]:
    """Lets the user's layers work on copies of their lists, dicts, sets and deques, nested ones too, until exit.

    A training step that keeps its loss in a list would keep the graph of every pass, and tensors of transforms of
    torch.func. A list or dict too long to be copied is cut to its former length on exit.
    """
    before: list[tuple[dict[str, object], str, object]] = []
    copies = _Copies()
    for layer in _users_layers(module):
        attributes = vars(layer)
        for name, value in _own(attributes).items():
            if not isinstance(value, Tensor) and (other := copies.of(value)) is not value:
                before.append((attributes, name, value))
                attributes[name] = other
    try:
        yield
    finally:
        for attributes, name, value in before:
            attributes[name] = value
        copies.shorten()


class _Copies:
    """Copies of containers, in which tensors have no graph; what is shared stays shared.

    Attributes:
        replaced: Tensors that take the place of others, by the ids of those.
    """

    def __init__(self, replaced: Mapping[int, Tensor] | None = None) -> None:
        self.replaced = replaced or {}
        self._made: dict[int, tuple[object, object]] = {}  # the originals too, so that ids stay theirs
        self._long: list[tuple[_Grown, int]] = []

    def of(self, value: object) -> object:
        """Returns a copy of a container, a tensor without graph, or anything else itself."""
        if id(value) in self.replaced:
            return self.replaced[id(value)]
        if isinstance(value, Tensor):
            return value if value.grad_fn is None else value.detach()
        if not isinstance(value, (list, dict, set, deque, tuple)):
            return value
        if id(value) not in self._made:
            self._made[id(value)] = (value, value)
            if isinstance(value, tuple):
                self._made[id(value)] = (value, self._tuple(value))
            elif isinstance(value, (list, dict)) and len(value) > SMALL:
                self._long.append((value, len(value)))
            else:
                self._copy(value)
        return self._made[id(value)][1]

    def shorten(self) -> None:
        """Takes from long containers what they received."""
        for value, length in self._long:
            while len(value) > length:  # a dict gives its latest key first
                value.popitem() if isinstance(value, dict) else value.pop()

    def _copy(self, value: _Container) -> None:
        try:
            other = copy.copy(value)
        except Exception:  # a class of the user's that cannot be copied
            return
        self._made[id(value)] = (value, other)  # before its items, one of which may hold it
        if isinstance(other, (list, deque)):
            for k, item in enumerate(value):
                if (new := self.of(item)) is not item:
                    other[k] = new
        elif isinstance(other, dict) and isinstance(value, dict):
            for key, item in value.items():
                if (new := self.of(item)) is not item:
                    other[key] = new

    def _tuple(self, value: tuple[object, ...]) -> object:
        items = [self.of(item) for item in value]
        changed = any(new is not item for new, item in zip(items, value, strict=True))
        return with_items(value, items) if changed else value


@dataclass
class _Saved:
    """A copy of a tensor.

    Attributes:
        tensor: Tensor that is copied.
        version: Version of the tensor with this content, by which a change in place is seen.
        content: Copy.
        restored: How often the tensor had to be given its content back.
    """

    tensor: Tensor
    version: int
    content: Tensor
    restored: int = 0

    @classmethod
    def of(cls, tensor: Tensor) -> _Saved:
        there = tensor.numel() * tensor.element_size() <= COPIED_THERE
        return cls(tensor, tensor._version, tensor.detach().to(tensor.device if there else "cpu", copy=True))

    @property
    def current(self) -> bool:
        return self.version == self.tensor._version

    def restore(self) -> None:
        if not self.current:
            with torch.no_grad():
                self.tensor.copy_(self.content)
            self.version = self.tensor._version
            self.restored += 1


# Copies of the contexts that are open, by id of the tensor: a context within another one, such as that of one sample
# within that of all, copies no large buffer again.
_SAVED: dict[int, _Saved] = {}


@contextmanager
def numbers_kept(module: nn.Module) -> Generator[None, None, None]:
    """Gives counters, tensors and buffers of the user's layers, also those in containers, their former values on exit.

    A loss that reads a counter, such as a weight that grows with the steps, is then that at the end of the fit.
    """
    before = [
        (values, name, value)
        for layer in _users_layers(module)
        for values in (vars(layer), layer._buffers)
        for name, value in values.items()
        if name != "training" and _is_number(value)
    ]
    tensors = [
        x
        for layer in _users_layers(module)
        for x in _tensors_in([*_own(vars(layer)).values(), *layer._buffers.values()])
        if not isinstance(x, nn.Parameter) and not x.is_inference()  # a tensor made in inference mode has no version
    ]
    outer = dict(_SAVED)
    saved = [one if (one := outer.get(id(x))) and one.current else _Saved.of(x) for x in tensors]
    _SAVED.update({id(one.tensor): one for one in saved})
    if _APART and (copies := _Copies(_changed_copies())).replaced:  # a tensor of two names stays one
        holders = [vars(layer) for layer in _users_layers(module)]
        held = [(values, name, value) for values in holders for name, value in _own(values).items()]
        before += [one for one in held if isinstance(one[2], (list, dict, set, deque, tuple))]
        for values, name, value in before:
            own = copies.replaced.get(id(value), value) if _is_number(value) else copies.of(value)
            values[name] = own  # type: ignore[assignment]  # in buffers, a tensor for a tensor
    try:
        yield
    finally:
        for values, name, value in before:
            values[name] = value
        for one in saved:
            one.restore()
        _SAVED.clear()
        _SAVED.update(outer)


def restored_in_place() -> int:
    """Returns how often tensors of the open contexts had to be given their content back.

    Where a pass raises it, a graph of that pass may hold such a tensor, and is lost: see `changed_apart`.
    """
    return sum(one.restored for one in _SAVED.values())


@contextmanager
def changed_apart() -> Generator[None, None, None]:
    """Lets passes until exit work on copies of the tensors that an earlier pass changed in place."""
    _APART.append(True)
    try:
        yield
    finally:
        _APART.pop()


_APART: list[bool] = []


def _changed_copies() -> dict[int, Tensor]:
    """Returns copies of the tensors of the open contexts that had to be given their content back, by their ids."""
    changed = ((key, one) for key, one in _SAVED.items() if one.restored)
    return {key: one.content.to(one.tensor.device, copy=True) for key, one in changed}


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float, Tensor))


def _own(attributes: dict[str, object]) -> dict[str, object]:
    """Returns the attributes of a layer that nn.Module does not define."""
    return {name: value for name, value in attributes.items() if name not in _OF_MODULE}


def _tensors_in(values: list[object]) -> Iterator[Tensor]:
    """Yields the tensors among values and in containers that are not too long, each once."""
    seen: set[int] = set()
    rest = [*values]
    while rest:
        value = rest.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple, dict, set, deque)) and len(value) <= SMALL:
            rest += value.values() if isinstance(value, dict) else value


def _users_layers(module: nn.Module) -> Iterator[nn.Module]:
    return (layer for layer in module.modules() if type(layer).__module__.partition(".")[0] not in _LIBRARIES)
