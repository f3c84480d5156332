"""Ways of drawing training samples whose epochs are another objective than that of a fixed set of samples."""

from __future__ import annotations

from collections import Counter
from contextlib import closing

from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from ifloo.errors import InputError
from ifloo.objective.batches import Batch, MapDataset
from ifloo.objective.dealt_samplers import dealt_by, own_sampler
from ifloo.objective.epoch_batches import (
    DRAWN_MOST,
    Repeated,
    SamplerEpochs,
    drawn_by,
    followed_batches,
    size_of_batches,
)

FOR_A_PART = "for a part of the data wrap the dataset (torch.utils.data.Subset)"


def refuse_partial(
    loader: DataLoader[Batch],
    limit_train_batches: int | float | None = None,
    overfit_batches: int | float = 0.0,
    reload_every_n_epochs: int = 0,
) -> None:
    """Checks that the epochs of a fit draw from a fixed set of samples, in a way in which each has a known weight in J.

    At random each sample must be drawn equally often; a last batch may be left out. Batches that are the same in each
    epoch may be any.

    Args:
        loader: Training loader.
        limit_train_batches: Setting of the Trainer; None: not limited.
        overfit_batches: Setting of the Trainer.
        reload_every_n_epochs: Setting `reload_dataloaders_every_n_epochs` of the Trainer.

    Raises:
        InputError: If it draws part of the samples at random, or some more often than others, so that the fit has
            another objective than J.
    """
    if isinstance(loader.dataset, IterableDataset) or not isinstance(loader.dataset, MapDataset):
        return  # refused by `samples_behind`, with its reason
    limited = limit_train_batches is not None and not _all_batches(loader, limit_train_batches)
    if limited or overfit_batches:
        setting = f"overfit_batches = {overfit_batches}" if overfit_batches else f"{limit_train_batches = }"
        raise InputError(
            f"The fit draws part of its batches alone ({setting}); J is the mean over every sample.\n"
            f"  Fit with all batches; {FOR_A_PART}."
        )
    if reload_every_n_epochs:
        raise InputError(
            "The fit makes its loader again during training (reload_dataloaders_every_n_epochs = "
            f"{reload_every_n_epochs}): its samples may change, and J is the mean over one fixed set.\n"
            "  Make the loader once; what changes from epoch to epoch belongs into the dataset."
        )
    sampler, n = own_sampler(drawn_by(loader)), len(loader.dataset)
    if n and (how := _unequal(loader, sampler, n)) is not None:
        raise InputError(_otherwise(sampler, how))


def refuse_rows_apart(loader: DataLoader[Batch]) -> None:
    """Checks that no sampler draws part of the dataset alone, for a J that runs over every sample by definition.

    Raises:
        InputError: If one does.
    """
    if isinstance(sampler := own_sampler(drawn_by(loader)), SubsetRandomSampler):
        raise InputError(_otherwise(sampler, ""))


def _otherwise(sampler: object, how: str) -> str:
    return (
        f"The training loader draws with {type(sampler).__name__}; J is the mean over every sample once.\n"
        f"  {how}Use shuffle=True or False; {FOR_A_PART}."
    )


def _all_batches(loader: DataLoader[Batch], limit: int | float) -> bool:
    return limit >= len(loader) if isinstance(limit, int) else limit >= 1.0


def _unequal(loader: DataLoader[Batch], sampler: object, n: int) -> str | None:
    """Returns how the draws of an epoch differ from equally many of each of n samples; None if they do not."""
    if type(sampler) in (SequentialSampler, SubsetRandomSampler, DistributedSampler):
        return None
    if isinstance(sampler, WeightedRandomSampler):
        return "The fit has another objective, in which some samples count more than others. "
    if type(sampler) is RandomSampler:
        if sampler.replacement:
            return "The fit draws some samples again and leaves others out (replacement=True). "
        return f"It draws {sampler.num_samples} of {n} samples. " if sampler.num_samples % n else None
    return _unequal_when_drawn(loader, n)


def _unequal_when_drawn(loader: DataLoader[Batch], n: int) -> str | None:
    """Follows a sampler of the user's through an epoch, and an unequal one through two: its batches may come again.

    What Lightning deals out is judged as the user's sampler draws it; other shares of processes may be padded.
    """
    outer = drawn_by(loader)
    if (inner := dealt_by(outer)) is not None:
        loader = DataLoader(loader.dataset, *size_of_batches(loader)[:1], sampler=inner)
    epochs = SamplerEpochs(loader)
    with closing(epochs()) as following:
        batches = next(following)
    drawn = Counter(batches.rows.tolist())
    largest = epochs.processes * (int(batches.sizes.max()) if len(batches.sizes) else 1)
    fewest, most = min(drawn.values(), default=0), max(drawn.values(), default=0)
    equal = drawn.total() - fewest * len(drawn) < epochs.processes
    if drawn and equal and n - len(drawn) < largest:
        return None
    shuffled = inner is not None and isinstance(outer, DistributedSampler) and outer.shuffle
    again = 0 < drawn.total() <= DRAWN_MOST * n and isinstance(followed_batches(loader, n), Repeated)
    if again and (not shuffled or most == 1):
        return None
    return f"It draws {len(drawn)} of {n} samples, and one of them {most} times. "
