"""Layout of a batch: which dimension of each tensor counts the samples, found by collating one sample several times."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from torch import Tensor

from ifloo.objective.forms import Batch, attributes, with_attributes, with_items, with_values


class _Part(Enum):
    SHARED = "the same for all samples"
    LISTED = "a list with an item for each sample"


# A dimension, a part of another kind, or the layouts of the items by key or position.
Node: TypeAlias = "int | _Part | dict[object, Node]"


class _NotSplittableError(Exception):
    """A part that belongs to several samples in no way that the layout can state."""


@dataclass(frozen=True)
class Layout:
    """Layout of the batches of one collate function.

    Attributes:
        root: Layout of the batch and its parts.
    """

    root: Node

    @classmethod
    def of(cls, collate: Callable[..., Batch], sample: object) -> Layout | None:
        """Finds the layout from batches of one, two and three copies of a sample.

        Returns:
            The layout; None if a tensor holds a number of rows other than one for a sample (such as the nodes of
            graphs), or if the collate function fails for copies.
        """
        try:
            root = _node(*(collate([sample] * count) for count in (1, 2, 3)))
        except Exception:  # the collate function is the user's, and copies of a sample are no batch of theirs
            return None
        return cls(root) if _counts(root) else None

    def split(self, batch: Batch) -> tuple[Batch, ...] | None:
        """Returns the batch of one of each sample; None if the batch has another form."""
        try:
            return tuple(_one(self.root, batch, k) for k in range(_size(self.root, batch)))
        except (_NotSplittableError, LookupError, TypeError, AttributeError):
            return None


def _node(one: object, two: object, three: object) -> Node:
    if isinstance(one, Tensor) and isinstance(two, Tensor) and isinstance(three, Tensor):
        return _dimension(one, two, three)
    if type(one) is not type(two) or type(two) is not type(three):
        raise _NotSplittableError
    if isinstance(one, Mapping) and isinstance(two, Mapping) and isinstance(three, Mapping):
        return {key: _node(one[key], two[key], three[key]) for key in one}
    if isinstance(one, (list, tuple)) and isinstance(two, (list, tuple)) and isinstance(three, (list, tuple)):
        return _listed(one, two, three)
    if held := attributes(one):
        others = attributes(two), attributes(three)
        return {name: _node(value, others[0][name], others[1][name]) for name, value in held.items()}
    if isinstance(one, (int, float, str, bool, type(None))) and one != three:  # such as the number of samples
        raise _NotSplittableError
    return _Part.SHARED


def _listed(one: Sequence[object], two: Sequence[object], three: Sequence[object]) -> Node:
    if (len(one), len(two), len(three)) == (1, 2, 3):
        return _Part.LISTED
    if not len(one) == len(two) == len(three):
        raise _NotSplittableError
    return {k: _node(*items) for k, items in enumerate(zip(one, two, three, strict=True))}


def _dimension(one: Tensor, two: Tensor, three: Tensor) -> Node:
    if one.shape == two.shape == three.shape:
        return _Part.SHARED
    if not one.ndim == two.ndim == three.ndim:
        raise _NotSplittableError
    sizes = list(zip(one.shape, two.shape, three.shape, strict=True))
    changing = [k for k, found in enumerate(sizes) if len(set(found)) > 1]
    if len(changing) != 1 or sizes[changing[0]] != (1, 2, 3):
        raise _NotSplittableError
    return changing[0]


def _counts(node: Node) -> bool:
    """Tells whether some part has an item for each sample."""
    if isinstance(node, dict):
        return any(_counts(part) for part in node.values())
    return node is not _Part.SHARED


def _size(node: Node, batch: object) -> int:
    if isinstance(node, int) and isinstance(batch, Tensor):
        return batch.shape[node]
    if node is _Part.LISTED and isinstance(batch, Sequence):
        return len(batch)
    if isinstance(node, dict):
        for key, part in node.items():
            if _counts(part):
                return _size(part, _item(batch, key))
    raise _NotSplittableError


def _item(batch: object, key: object) -> object:
    if isinstance(batch, Mapping):
        return batch[key]
    if isinstance(batch, (list, tuple)) and isinstance(key, int):
        return batch[key]
    return attributes(batch)[str(key)]


def _one(node: Node, batch: object, k: int) -> object:
    if isinstance(node, int) and isinstance(batch, Tensor):
        return batch.narrow(node, k, 1)
    if node is _Part.LISTED and isinstance(batch, (list, tuple)):
        return with_items(batch, [batch[k]])
    if not isinstance(node, dict):
        return batch
    parts = {key: _one(part, _item(batch, key), k) for key, part in node.items()}
    if isinstance(batch, Mapping):
        return with_values(batch, parts)
    if isinstance(batch, (list, tuple)):
        return with_items(batch, parts.values())
    return with_attributes(batch, {str(name): value for name, value in parts.items()})
