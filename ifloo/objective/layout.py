"""Layout of a batch: which dimension of each tensor counts the samples, found by collating one sample several times.

A layout that is found so is tried: the parts of a batch of copies must be the batch of one of the sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from torch import Tensor, strided, tensor
from torch.nn.utils.rnn import PackedSequence

from ifloo.objective.forms import Batch, attributes, is_opaque, with_attributes, with_items, with_values
from ifloo.objective.seeded_draws import SeededCollate


class Part(Enum):
    """Share of the samples in a part of a batch that has no dimension of samples."""

    SHARED = "the same for all samples"
    LISTED = "a list with an item for each sample"
    NUMBER = "the number of samples"
    JOINED = "of all samples together, such as the nodes of graphs"


# A dimension, a part of another kind, or the layouts of the items by key or position.
Node: TypeAlias = "int | Part | dict[object, Node]"


class _NotSplittableError(Exception):
    """A part that belongs to several samples in no way that the layout can state."""


@dataclass(frozen=True)
class Layout:
    """Layout of the batches of one collate function.

    Attributes:
        root: Layout of the batch and its parts.
        divisible: Whether each sample has its own share of every part that is not the same for all.
    """

    root: Node
    divisible: bool = True

    @classmethod
    def of(cls, collate: Callable[..., Batch], sample: object) -> Layout | None:
        """Finds the layout from batches of one, two and three copies of a sample.

        Returns:
            The layout; None if a tensor holds a number of rows other than one for a sample (such as the nodes of
            graphs), or if the collate function fails for copies.
        """
        found = cls.counting(collate, sample)
        return found if found is not None and found.divisible else None

    @classmethod
    def counting(cls, collate: Callable[..., Batch], sample: object) -> Layout | None:
        """Finds a layout that tells the number of samples in a batch at least; None if no part does."""
        try:
            one, two, three = (collate([sample] * count) for count in (1, 2, 3))
            fixed = not _draws(collate, sample)  # else values of copies differ
            root = _node(one, two, three, fixed)
        except Exception:  # the collate function is the user's, and copies of a sample are no batch of theirs
            return None
        if not _counts(root):
            return None
        parts = None if _joins(root) else cls(root).split(three)
        return cls(root, parts is not None and not (fixed and not all(_same(part, one) for part in parts)))

    def split(self, batch: Batch) -> tuple[Batch, ...] | None:
        """Returns the batch of one of each sample; None if the batch has another form, or cannot be divided."""
        size = self.size(batch) if self.divisible else None
        if size is None:
            return None
        try:
            return tuple(_one(self.root, batch, k) for k in range(size))
        except (_NotSplittableError, LookupError, TypeError, AttributeError, RuntimeError):
            return None

    def size(self, batch: Batch) -> int | None:
        """Returns the number of samples in a batch; None if the batch has another form."""
        try:
            sizes = set(_sizes(self.root, batch))
        except (_NotSplittableError, LookupError, TypeError, AttributeError):
            return None
        return sizes.pop() if len(sizes) == 1 else None


def _draws(collate: Callable[..., Batch], sample: object) -> bool:
    """Tells whether a collate function draws random numbers, such as those of the words that it masks."""
    if not isinstance(collate, SeededCollate):
        return False
    return not _same(*(SeededCollate(collate.collate, draw)([sample] * 3) for draw in (1, 2)))


def _node(one: object, two: object, three: object, fixed: bool) -> Node:
    if isinstance(one, Tensor) and isinstance(two, Tensor) and isinstance(three, Tensor):
        return _dimension(one, two, three, fixed)
    if type(one) is not type(two) or type(two) is not type(three) or isinstance(one, PackedSequence) or is_opaque(one):
        return Part.JOINED
    if isinstance(one, Mapping) and isinstance(two, Mapping) and isinstance(three, Mapping):
        if not one.keys() == two.keys() == three.keys():
            return Part.JOINED
        return {key: _node(one[key], two[key], three[key], fixed) for key in one}
    if isinstance(one, (list, tuple)) and isinstance(two, (list, tuple)) and isinstance(three, (list, tuple)):
        return _listed(one, two, three, fixed)
    if held := attributes(one):
        others = attributes(two), attributes(three)
        return {name: _node(value, others[0].get(name), others[1].get(name), fixed) for name, value in held.items()}
    if isinstance(one, (int, float, str, bool, type(None))) and one != three:
        return Part.NUMBER if type(one) is int and (one, two, three) == (1, 2, 3) else Part.JOINED
    return Part.SHARED


def _listed(one: Sequence[object], two: Sequence[object], three: Sequence[object], fixed: bool) -> Node:
    if (len(one), len(two), len(three)) == (1, 2, 3):
        return Part.LISTED
    if not len(one) == len(two) == len(three):
        return Part.JOINED
    return {k: _node(*items, fixed) for k, items in enumerate(zip(one, two, three, strict=True))}


def _dimension(one: Tensor, two: Tensor, three: Tensor, fixed: bool) -> Node:
    if one.shape == two.shape == three.shape:
        return Part.JOINED if fixed and not (_same(one, two) and _same(one, three)) else Part.SHARED
    if not one.ndim == two.ndim == three.ndim:
        return Part.JOINED
    sizes = list(zip(one.shape, two.shape, three.shape, strict=True))
    changing = [k for k, found in enumerate(sizes) if len(set(found)) > 1]
    if len(changing) != 1 or sizes[changing[0]] != (1, 2, 3):
        return Part.JOINED
    return changing[0]


def _same(one: object, other: object) -> bool:
    """Tells whether two batches are the same, as far as they hold tensors and plain values."""
    if isinstance(one, Tensor):
        if not isinstance(other, Tensor) or (one.shape, one.dtype, one.layout) != (
            other.shape,
            other.dtype,
            other.layout,
        ):
            return False
        plain = (one, other) if one.layout is strided else (one.to_dense(), other.to_dense())
        return bool(((plain[0] == plain[1]) | (plain[0] != plain[0])).all())  # NaN counts as itself
    if isinstance(one, Mapping):
        return isinstance(other, Mapping) and one.keys() == other.keys() and all(_same(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        if not isinstance(other, (list, tuple)) or len(one) != len(other):
            return False
        return all(map(_same, one, other))
    if held := attributes(one):
        others = attributes(other)
        return held.keys() == others.keys() and all(_same(value, others[name]) for name, value in held.items())
    return one == other if isinstance(one, (int, float, str, bool, type(None))) else True


def _counts(node: Node) -> bool:
    """Tells whether some part has an item for each sample, or their number."""
    if isinstance(node, dict):
        return any(_counts(part) for part in node.values())
    return node not in (Part.SHARED, Part.JOINED)


def _joins(node: Node) -> bool:
    """Tells whether a part belongs to several samples in no way that can be stated."""
    return any(map(_joins, node.values())) if isinstance(node, dict) else node is Part.JOINED


def _sizes(node: Node, batch: object) -> Iterator[int]:
    """Yields the number of samples by each part that tells it.

    Raises:
        _NotSplittableError: The batch has another form.
    """
    if isinstance(node, dict):
        for key, part in node.items():
            if _counts(part):
                yield from _sizes(part, _item(batch, key))
    elif node is Part.NUMBER and type(batch) is int:
        yield batch
    elif node is Part.LISTED and isinstance(batch, Sequence):
        yield len(batch)
    elif isinstance(node, int) and isinstance(batch, Tensor):
        yield batch.shape[node]
    else:
        raise _NotSplittableError


def _item(batch: object, key: object) -> object:
    if isinstance(batch, Mapping):
        return batch[key]
    if isinstance(batch, (list, tuple)) and isinstance(key, int):
        return batch[key]
    return attributes(batch)[str(key)]


def _one(node: Node, batch: object, k: int) -> object:
    if isinstance(node, int) and isinstance(batch, Tensor):
        return (
            batch.narrow(node, k, 1)
            if batch.layout is strided
            else batch.index_select(node, tensor([k]).to(batch.device))
        )
    if node is Part.LISTED and isinstance(batch, (list, tuple)):
        return with_items(batch, [batch[k]])
    if node is Part.NUMBER:
        return 1
    if not isinstance(node, dict):
        return batch
    parts = {key: _one(part, _item(batch, key), k) for key, part in node.items()}
    if isinstance(batch, Mapping):
        return with_values(batch, parts)
    if isinstance(batch, (list, tuple)):
        return with_items(batch, parts.values())
    return with_attributes(batch, {str(name): value for name, value in parts.items()})
