"""Forms of batches: traversal of tensors, mappings, sequences, dataclasses and objects that hold tensors.

A rebuilt batch keeps the class of every part, as Lightning does when it moves a batch to a device: a `UserDict` stays
one (`BatchEncoding` of transformers is one), a named tuple stays one, and an object of another class is copied.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from typing import Protocol, TypeAlias, runtime_checkable

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

# A tensor, or a structure of tensors and other values. Only this file depends on the form of a batch.
Batch: TypeAlias = object
_LEAVES = (str, bytes, int, float, complex, bool, type(None), type, nn.Module)


@runtime_checkable
class _NamedTuple(Protocol):
    def _make(self, items: Iterable[object], /) -> tuple[object, ...]: ...


def with_items(like: Sequence[object], items: Iterable[object]) -> Sequence[object]:
    """Returns a list, tuple or named tuple of the type of `like` with these items."""
    return like._make(items) if isinstance(like, _NamedTuple) else type(like)(items)  # type: ignore[call-arg]


def map_tensors(function: Callable[[Tensor], object], batch: Batch) -> Batch:
    """Applies `function` to each tensor of a batch and keeps everything else, and the class of every part."""
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, Mapping):
        return with_values(batch, {k: map_tensors(function, v) for k, v in batch.items()})
    if isinstance(batch, PackedSequence):
        data = function(batch.data)
        assert isinstance(data, Tensor)
        return PackedSequence(data, batch.batch_sizes, batch.sorted_indices, batch.unsorted_indices)
    if isinstance(batch, (tuple, list)):
        return with_items(batch, (map_tensors(function, v) for v in batch))
    if held := attributes(batch):
        return with_attributes(batch, {name: map_tensors(function, v) for name, v in held.items()})
    return batch


def tensors_of(batch: Batch) -> Iterator[Tensor]:
    """Yields all tensors of a batch."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from tensors_of(value)
    elif isinstance(batch, (tuple, list)):
        for value in batch:
            yield from tensors_of(value)
    else:
        for value in attributes(batch).values():
            yield from tensors_of(value)


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
    if dataclasses.is_dataclass(part):
        return {f.name: value for f in dataclasses.fields(part) if (value := vars(part).get(f.name)) is not None}
    try:
        held = vars(part)
    except TypeError:  # it has no attributes of its own
        return {}
    return {name: value for name, value in held.items() if next(_direct(value), None) is not None}


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
