"""Division of a raw batch, such as one of test samples, into batches of one sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Number

from torch import Tensor
from torch.utils.data import DataLoader

from ifloo.errors import InputError
from ifloo.objective.batches import batch_size, fetch_samples, slice_batch
from ifloo.objective.forms import Batch, opaque_parts, tensors_of
from ifloo.objective.layout import Layout, Node, Part
from ifloo.objective.loaders import unwrap_loader
from ifloo.objective.seeded_draws import Collate
from ifloo.objective.singles import Singles


@dataclass(frozen=True)
class Separation:
    """Division of batches into samples, in the way of the training data.

    Attributes:
        sample: First training sample, as the dataset returns it.
        like: Batch that the collate function makes of it.
        layout: Layout of the batches, which at least counts the samples; None if none is found.
        rows: Whether the layout is unknown, since the dataset itself collates: each row of a batch is then a sample.
        whole: Whether each item of the dataset is a batch, and counts as one sample (`batch_size=None`).
    """

    sample: object
    like: Batch
    layout: Layout | None
    rows: bool = False
    whole: bool = False

    @classmethod
    def of(cls, loader: DataLoader[Batch]) -> Separation:
        """Reads the first sample of a training loader, and finds the layout of its batches."""
        dataset, collate = unwrap_loader(loader)
        fetched = fetch_samples(dataset, [0])
        return cls.of_sample(collate, fetched, loader.batch_sampler is not None)

    @classmethod
    def of_sample(cls, collate: Collate, fetched: object, batched: bool) -> Separation:
        """Finds the layout of batches.

        Args:
            collate: Collate function.
            fetched: One sample, in the form that the collate function takes.
            batched: Whether the collate function makes a batch of several samples.
        """
        like = collate(fetched)
        if not isinstance(fetched, list):
            return cls(fetched, like, None, rows=batched, whole=not batched)
        layout = Layout.counting(collate, fetched[0]) if batched else None
        return cls(fetched[0], like, layout, whole=not batched)

    def alike(self, batch: Batch) -> bool:
        """Tells whether a batch has the form of the training batches, with any number of samples."""
        return _fits(batch, self.like, None if self.layout is None else self.layout.root)

    def singles(self, batch: Batch) -> Singles:
        """Divides a batch into batches of one.

        Raises:
            InputError: There is no tensor with dimensions, or the samples cannot be separated.
        """
        if self.whole:
            return Singles((batch,), batch)
        alike = self.alike(batch)
        if alike and self.layout is not None:
            if (parts := self.layout.split(batch)) is not None:
                return Singles(parts, batch)
            if self.layout.size(batch) == 1:
                return Singles((batch,), batch)
        b, opaque = batch_size(batch), opaque_parts(batch)
        by_rows = self.rows or (self.layout is not None and self.layout.divisible and not alike)
        differ = any(len(x) != b for x in tensors_of(batch) if x.ndim)
        if opaque or differ or not by_rows:
            raise InputError(_joined(batch, opaque, differ))
        return Singles(tuple(slice_batch(batch, slice(k, k + 1)) for k in range(b)), batch)


def _joined(batch: Batch, opaque: Sequence[object], differ: bool) -> str:
    if opaque:
        reason = f"a {type(opaque[0]).__name__} has no tensor attributes"
    elif differ:
        reason = "its tensors differ in their first dimension"
    else:
        reason = "rows of its tensors are no samples"
    return (
        f"The samples of a batch ({type(batch).__name__}) cannot be separated: {reason}.\n"
        "  Give them as a data set or a list of samples where one is accepted: each is then collated alone. Or give "
        "each as a batch of one: ifloo.objective.Singles((first, second)), also for a single sample."
    )


def _fits(value: object, like: object, node: Node | None) -> bool:
    """Tells whether a value has the form of another; lists with an item for each sample may differ in length."""
    if node is Part.LISTED:
        return isinstance(value, (list, tuple))
    if not isinstance(node, dict):
        return same_form(value, like)
    if isinstance(like, Mapping):
        return (
            isinstance(value, Mapping)
            and value.keys() == like.keys()
            and all(_fits(value[key], item, node.get(key)) for key, item in like.items())
        )
    if isinstance(like, (list, tuple)):
        if not isinstance(value, (list, tuple)) or len(value) != len(like):
            return False
        return all(_fits(x, y, node.get(k)) for k, (x, y) in enumerate(zip(value, like, strict=True)))
    return type(value) is type(like)


def same_form(value: object, like: object) -> bool:
    """Tells whether two values have tensors of the same numbers of dimensions in the same structure."""
    if isinstance(like, Tensor):
        return isinstance(value, Tensor) and value.ndim == like.ndim
    if isinstance(like, Mapping):
        return (
            isinstance(value, Mapping)
            and value.keys() == like.keys()
            and all(same_form(value[key], item) for key, item in like.items())
        )
    if isinstance(like, (list, tuple)):
        if not isinstance(value, (list, tuple)):
            return False
        if next(tensors_of([value, like]), None) is None:  # one value a sample or a token, of any number
            return True
        return len(value) == len(like) and all(same_form(x, y) for x, y in zip(value, like, strict=True))
    if isinstance(like, Number):
        return isinstance(value, Number)
    return type(value) is type(like)
