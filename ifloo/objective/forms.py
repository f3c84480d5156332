"""Forms of batches: traversal of tensors, mappings, sequences, dataclasses and objects that hold tensors.

A rebuilt batch keeps the class of every part, as Lightning does when it moves a batch to a device: a `UserDict` stays
one (`BatchEncoding` of transformers is one), a named tuple stays one, and an object of another class is copied. An
object without tensor attributes that has a method `to`, such as a graph whose tensors lie in a store, is opaque: it is
moved as a whole and never split.
"""

from __future__ import annotations

import copy
import dataclasses
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import suppress
from typing import Protocol, TypeAlias, TypeGuard, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

# A tensor, or a structure of tensors and other values. Only this file depends on the form of a batch.
Batch: TypeAlias = object
_LEAVES = (str, bytes, int, float, complex, bool, type(None), type, nn.Module)


@runtime_checkable
class _NamedTuple(Protocol):
    def _make(self, items: Iterable[object], /) -> tuple[object, ...]: ...


@runtime_checkable
class Movable(Protocol):
    """An object that moves itself to a device, as Lightning asks of every part of a batch that has this method."""

    def to(self, device: torch.device, /) -> object: ...


def with_items(like: Sequence[object], items: Iterable[object]) -> Sequence[object]:
    """Returns a list, tuple or named tuple of the type of `like` with these items."""
    return like._make(items) if isinstance(like, _NamedTuple) else type(like)(items)  # type: ignore[call-arg]


def map_tensors(
    function: Callable[[Tensor], object], batch: Batch, of_opaque: Callable[[Movable], object] | None = None
) -> Batch:
    """Applies `function` to each tensor of a batch and keeps everything else, and the class of every part.

    Args:
        function: Function of a tensor.
        batch: Batch.
        of_opaque: Function of an opaque part; None keeps it.
    """
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, Mapping):
        return with_values(batch, {k: map_tensors(function, v, of_opaque) for k, v in batch.items()})
    if isinstance(batch, PackedSequence):
        data = function(batch.data)
        assert isinstance(data, Tensor)
        return PackedSequence(data, batch.batch_sizes, batch.sorted_indices, batch.unsorted_indices)
    if isinstance(batch, (tuple, list)):
        return with_items(batch, (map_tensors(function, v, of_opaque) for v in batch))
    if held := attributes(batch):
        return with_attributes(batch, {name: map_tensors(function, v, of_opaque) for name, v in held.items()})
    return of_opaque(batch) if of_opaque is not None and is_opaque(batch) else batch


def parts_of(batch: object) -> Iterator[tuple[object, object]]:
    """Yields key and value of each item of a mapping or sequence, or of each attribute that may hold tensors."""
    if isinstance(batch, Mapping):
        yield from batch.items()
    elif isinstance(batch, (tuple, list)):
        yield from enumerate(batch)
    else:
        yield from attributes(batch).items()


def with_parts(batch: object, function: Callable[[object, object], object]) -> object:
    """Returns a batch of the same class with `function` of key and value of each part in place of the part."""
    values = {key: function(key, value) for key, value in parts_of(batch)}
    if isinstance(batch, Mapping):
        return with_values(batch, values)
    if isinstance(batch, (tuple, list)):
        return with_items(batch, values.values())
    return with_attributes(batch, {str(name): value for name, value in values.items()}) if values else batch


def moved(batch: Batch, device: torch.device, dtype: torch.dtype | None = None, non_blocking: bool = False) -> Batch:
    """Moves a batch to a device and, with a dtype, casts its floating-point tensors, those of opaque parts too."""

    def of_tensor(x: Tensor) -> Tensor:
        own = x.detach() if x.requires_grad else x  # else the graph of an input would hang on every loss
        return own.to(device, dtype if x.is_floating_point() else None, non_blocking=non_blocking)

    def of_opaque(part: Movable) -> object:
        found = part.to(device)  # None if it moves itself in place
        return with_tensors_within(part if found is None else found, of_tensor)

    return map_tensors(of_tensor, batch, of_opaque)


def tensors_of(batch: Batch, within_opaque: bool = True) -> Iterator[Tensor]:
    """Yields all tensors of a batch; `within_opaque` includes those that are found in opaque parts."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, (Mapping, tuple, list)):
        for value in batch.values() if isinstance(batch, Mapping) else batch:
            yield from tensors_of(value, within_opaque)
    elif held := attributes(batch):
        for value in held.values():
            yield from tensors_of(value, within_opaque)
    elif within_opaque and is_opaque(batch):
        yield from _within(batch, set())


def dense(x: Tensor) -> Tensor:
    """Returns a tensor with all entries in place, of one that is sparse, quantized or nested (padded with zeros)."""
    if x.is_nested:
        return nn.utils.rnn.pad_sequence([part.flatten() for part in x.unbind()], batch_first=True)
    plain = x.dequantize() if x.is_quantized else x
    return plain if plain.layout is torch.strided else plain.to_dense()


def listed(part: object, b: int) -> TypeGuard[Sequence[object]]:
    """Tells whether a part is a list with one item for each of b samples, such as texts, and no tensor among them."""
    return isinstance(part, (list, tuple)) and len(part) == b and next(tensors_of(part), None) is None


def is_opaque(part: object) -> TypeGuard[Movable]:
    """Tells whether a part has no tensor attributes but moves itself to a device."""
    return (
        isinstance(part, Movable)
        and callable(part.to)
        and not isinstance(part, (Tensor, Mapping, tuple, list, *_LEAVES))
        and not attributes(part)
    )


def opaque_parts(batch: Batch) -> list[object]:
    """Lists the opaque parts of a batch."""
    found: list[object] = []

    def of_opaque(part: Movable) -> object:
        found.append(part)
        return part

    map_tensors(lambda x: x, batch, of_opaque)
    return found


def _holds_tensors(value: object) -> bool:
    if isinstance(value, (Mapping, tuple, list)):
        return any(map(_holds_tensors, value.values() if isinstance(value, Mapping) else value))
    return isinstance(value, Tensor) or bool(attributes(value)) or is_opaque(value)


def with_tensors_within(part: object, function: Callable[[Tensor], Tensor]) -> object:
    """Returns an opaque part with `function` applied to the tensors in it; a copy if one of them changes."""
    changed = {id(x): y for x in _within(part, set()) if (y := function(x)) is not x}
    return copy.deepcopy(part, dict(changed)) if changed else part


def _within(value: object, seen: set[int]) -> Iterator[Tensor]:
    """Yields the tensors in an object, its attributes and their containers, each once."""
    if isinstance(value, _LEAVES) or id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (Mapping, tuple, list, set)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _within(item, seen)
    else:
        for item in _held(value).values():
            yield from _within(item, seen)


def with_values(like: Mapping[object, object], values: dict[object, object]) -> Mapping[object, object]:
    """Returns a mapping of the type of `like` with these values."""
    if type(like) is dict:
        return values
    if isinstance(like, MutableMapping):
        copied = copy.copy(like)
        for key, value in values.items():
            copied[key] = value
        return copied
    return type(like)(values)  # type: ignore[call-arg]


def attributes(part: object) -> dict[str, object]:
    """Returns the attributes of an object that may hold tensors: a dataclass, or an instance of a user's class."""
    if isinstance(part, _LEAVES) or callable(part):
        return {}
    held = _held(part)
    if dataclasses.is_dataclass(part):
        if isinstance(part, Movable) and not any(map(_holds_tensors, held.values())):
            return {}
        return {name: value for name, value in held.items() if value is not None}
    return {name: value for name, value in held.items() if next(_direct(value), None) is not None}


def _held(part: object) -> dict[str, object]:
    """Returns the attributes of an object; of a dataclass its fields, which may lie in slots."""
    if dataclasses.is_dataclass(part):
        found: dict[str, object] = {}
        for one in dataclasses.fields(part):
            with suppress(AttributeError):  # a field without default that is not set
                found[one.name] = operator.attrgetter(one.name)(part)
        return found
    try:
        return vars(part)
    except TypeError:  # it has no attributes of its own
        return {}


def _direct(value: object) -> Iterator[Tensor]:
    """Yields the tensors of an attribute, at the top or in a plain container: other objects are not searched."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (Mapping, tuple, list)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _direct(item)


def with_attributes(like: object, values: Mapping[str, object]) -> object:
    """Returns a copy of an object with other values of some attributes."""
    copied = copy.copy(like)
    for name, value in values.items():
        object.__setattr__(copied, name, value)
    return copied
