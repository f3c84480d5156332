"""Dimension of each tensor of a batch that runs over the samples, found by what a loader's collate function makes.

A collate function may stack samples along another dimension than the first, as `[T, b]` layouts of sequences do. Of one
sample and of the same sample twice it makes batches that differ in this dimension alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.utils.data import DataLoader

from ifloo.errors import InputError
from ifloo.objective.batches import fetch_samples
from ifloo.objective.forms import Batch, map_tensors, tensors_of
from ifloo.objective.loaders import unwrap_loader
from ifloo.objective.singles import Singles


def singles_of(batch: Batch, loader: DataLoader[Batch]) -> Singles:
    """Divides a batch, of the form that the collate function of a loader makes, into batches of one sample.

    Raises:
        InputError: The samples cannot be separated, as in a batch of graphs whose nodes are joined.
    """
    if loader.batch_sampler is None:  # each item of the dataset is a batch, and counts as one sample
        return Singles((batch,), batch)
    axes, tensors = sample_axes(loader), list(tensors_of(batch))
    if len(axes) != len(tensors):  # with ids that the training data lack, for example
        axes = [0 if x.ndim else None for x in tensors]
    sizes = {x.shape[axis] for x, axis in zip(tensors, axes, strict=True) if axis is not None}
    if len(sizes) != 1:
        raise InputError(
            "A batch must have one number of samples; its tensors have "
            f"{', '.join(str(list(x.shape)) for x in tensors)}.\n  Give the samples as a data set, or as a list."
        )
    return Singles(tuple(_one(batch, axes, k) for k in range(sizes.pop())), batch)


def sample_axes(loader: DataLoader[Batch]) -> list[int | None]:
    """Returns the dimension over the samples of each tensor of a batch, in order; None for one that all samples share.

    Raises:
        InputError: A tensor has no dimension with one entry for each sample.
    """
    dataset, collate = unwrap_loader(loader)
    drawn = fetch_samples(dataset, [0])
    twice = [*drawn, *drawn] if isinstance(drawn, list) else fetch_samples(dataset, [0, 0])
    one, two = (list(tensors_of(collate(samples))) for samples in (drawn, twice))
    if len(one) != len(two):
        raise InputError(_joined(type(collate(drawn)).__name__))
    return [_axis(a, b, type(collate(drawn)).__name__) for a, b in zip(one, two, strict=True)]


def _axis(one: Tensor, two: Tensor, kind: str) -> int | None:
    if one.shape == two.shape:
        return None
    differ = [d for d, (a, b) in enumerate(zip(one.shape, two.shape, strict=False)) if a != b]
    if one.ndim != two.ndim or len(differ) != 1 or (one.shape[differ[0]], two.shape[differ[0]]) != (1, 2):
        raise InputError(_joined(kind))
    return differ[0]


def _joined(kind: str) -> str:
    return (
        f"The samples of a batch ({kind}) cannot be separated: its tensors have no dimension with one entry for each.\n"
        "  Give the samples as a data set, or as a list."
    )


def _one(batch: Batch, axes: Sequence[int | None], k: int) -> Batch:
    ahead = iter(axes)

    def of(x: Tensor) -> Tensor:
        axis = next(ahead)
        return x if axis is None else x.narrow(axis, k, 1)

    return map_tensors(of, batch)
