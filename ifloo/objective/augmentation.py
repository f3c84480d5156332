"""Whether training samples are drawn at random when they are read, and whether a seed fixes the draw."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TypeAlias

from torch.utils.data import DataLoader

from ifloo.errors import InputError
from ifloo.objective.batches import Batch, MapDataset, fetch_samples, tensors_of, without_ids
from ifloo.objective.forms import dense
from ifloo.objective.loaders import first_draw_reads, training_dataset, unwrap_loader
from ifloo.objective.seeded_draws import (
    Collate,
    SeededCollate,
    SeededDraws,
    is_kept,
    tensors_in_memory,
)

log = logging.getLogger(__name__)
ROWS = 16  # samples read again under another seed: a random flip of probability 1/2 is missed once in 65,536 times
OTHER_DRAW = -1
_CHANGING = (
    "The training data change: {}, by random numbers that no seed repeats: they do not come from the generators of "
    "torch, numpy and Python, which are seeded for each sample (a numpy.random.default_rng() of its own, for "
    "instance).\n"
    "  Draw them from these generators; or turn random transforms off, for the fit too."
)
Reader: TypeAlias = tuple[MapDataset, Collate]


@dataclass(frozen=True)
class Augmentation:
    """Samples that are other ones at another read.

    Attributes:
        how: How two reads of a sample differ, as a clause.
        seeded: Whether the read of a sample is the same under the same seed of torch, numpy and Python.
    """

    how: str
    seeded: bool


def find_augmentation(loader: DataLoader[Batch]) -> Augmentation | None:
    """Reads some samples again, under another seed, and other ones under the same.

    Samples that are kept once read are read from the dataset once more; random states are restored.

    Returns:
        None if the samples are the same at each read.
    """
    own = training_dataset(loader)
    scored, collate = first_draw_reads(loader)
    plain = tensors_in_memory(own) is not None and not isinstance(collate, SeededCollate)
    if plain or not len(own):
        return None
    changed, repeated = _rows(len(own))
    redrawn = collate.redrawn(OTHER_DRAW) if isinstance(collate, SeededCollate) else collate
    other = _difference((scored, collate), (SeededDraws(own, OTHER_DRAW), redrawn), changed)
    same = _difference((scored, collate), (SeededDraws(own), collate), repeated)
    found = same or other
    return None if found is None else Augmentation(found, seeded=same is None)


def warn_of_augmentation(loader: DataLoader[Batch]) -> None:
    """Says once that samples are augmented, and how they are scored; samples that are kept were checked before.

    Raises:
        InputError: If samples change at each read whatever the seed.
    """
    if is_kept(unwrap_loader(loader)[0]) or (found := find_augmentation(loader)) is None:
        return
    if not found.seeded:
        raise InputError(_CHANGING.format(found.how))
    log.warning(
        "training samples are augmented (%s): scores are of one draw of each, under a seed of its own.", found.how
    )


def refuse_changing_reads(loader: DataLoader[Batch]) -> None:
    """Checks that a sample is the same at each read under one seed.

    Raises:
        InputError: If samples change at each read whatever the seed.
    """
    found = find_augmentation(loader)
    if found is not None and not found.seeded:
        raise InputError(_CHANGING.format(found.how))


def _rows(n: int) -> tuple[list[int], list[int]]:
    """Chooses samples to read under another seed (the first ones, and some spread over all) and under the same seed."""
    spread = [k * (n - 1) // max(1, 4 * ROWS - 1) for k in range(4 * ROWS)]
    changed = set(spread[::4]) | set(range(min(ROWS, (n + 1) // 2)))
    repeated = [i for i in dict.fromkeys(spread) if i not in changed][:: max(1, min(3, n // (4 * ROWS)))]
    return sorted(changed), repeated[:ROWS]


def _difference(scored: Reader, again: Reader, rows: list[int]) -> str | None:
    """Describes the first difference between two reads of these samples, each collated alone."""
    for row in rows:
        first, second = (
            [dense(x) for x in tensors_of(without_ids(collate(fetch_samples(dataset, [row]))))]
            for dataset, collate in (scored, again)
        )
        for a, b in zip(first, second, strict=False):
            if a.shape != b.shape:
                return f"two reads of training sample {row} have shapes {list(a.shape[1:])} and {list(b.shape[1:])}"
            apart = (a != b) & ~((a != a) & (b != b))  # NaN is no change
            if apart.any():
                largest = float((a.double() - b.double()).abs()[apart].max())
                return f"two reads of training sample {row} differ, by up to {largest:.3g}"
        if len(first) != len(second):
            return f"two reads of training sample {row} have {len(first)} and {len(second)} tensors"
    return None
