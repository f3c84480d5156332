"""Samples that a training loader draws in an epoch: J is the mean over each of them once."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Iterator

from torch.utils.data import (
    BatchSampler,
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
from ifloo.objective.randomness import undisturbed
from ifloo.objective.seeded_draws import training_reads

EPOCHS_READ = 3  # a sampler of another class is followed over this many draws a sample at most
FOR_A_PART = "for a part of the data wrap the dataset (torch.utils.data.Subset)"


def drawn_by(loader: DataLoader[Batch]) -> object:
    """Returns the sampler of a loader, from within a `BatchSampler` of torch; a batch sampler of another class."""
    batches = loader.batch_sampler
    if batches is None:
        return loader.sampler
    return batches.sampler if type(batches) is BatchSampler else batches


def refuse_partial(
    loader: DataLoader[Batch],
    limit_train_batches: int | float | None = None,
    overfit_batches: int | float = 0.0,
    reload_every_n_epochs: int = 0,
) -> None:
    """Checks that an epoch of a fit draws the samples of a fixed set equally often; a last batch may be left out.

    Args:
        loader: Training loader.
        limit_train_batches: Setting of the Trainer; None: not limited.
        overfit_batches: Setting of the Trainer.
        reload_every_n_epochs: Setting `reload_dataloaders_every_n_epochs` of the Trainer.

    Raises:
        InputError: If it draws part of the samples, or some more often than others, so that the fit has another
            objective than J.
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
    sampler, n = drawn_by(loader), len(loader.dataset)
    if n and (how := _unequal(sampler, n, [loader.dataset, training_reads(loader.dataset)])) is not None:
        raise InputError(
            f"The training loader draws with {type(sampler).__name__}; J is the mean over every sample once.\n"
            f"  {how}Use shuffle=True or False; {FOR_A_PART}."
        )


def _all_batches(loader: DataLoader[Batch], limit: int | float) -> bool:
    return limit >= len(loader) if isinstance(limit, int) else limit >= 1.0


def _unequal(sampler: object, n: int, datasets: list[object]) -> str | None:
    """Returns how the draws of an epoch differ from equally many of each of n samples; None if they do not."""
    if type(sampler) is SequentialSampler or isinstance(sampler, DistributedSampler):
        return None
    if isinstance(sampler, WeightedRandomSampler):
        return "The fit has another objective, in which some samples count more than others. "
    if isinstance(sampler, SubsetRandomSampler):
        return ""
    if type(sampler) is RandomSampler:
        if sampler.replacement:
            return "The fit draws some samples again and leaves others out (replacement=True). "
        return f"It draws {sampler.num_samples} of {n} samples. " if sampler.num_samples % n else None
    return _unequal_when_drawn(sampler, n, datasets)


def _unequal_when_drawn(sampler: object, n: int, datasets: list[object]) -> str | None:
    """Follows a copy of a sampler, or of a sampler of batches, through one epoch; random states are restored."""
    largest, drawn = 1, Counter[int]()
    with undisturbed():
        for batch in _batches(sampler, datasets):
            largest = max(largest, len(batch))
            drawn.update(batch)
            if drawn.total() > EPOCHS_READ * n:
                break
    if len(set(drawn.values())) == 1 and n - len(drawn) < largest:
        return None
    most = max(drawn.values(), default=0)
    return f"It draws {len(drawn)} of {n} samples, and one of them {most} times. "


def _batches(sampler: object, datasets: list[object]) -> Iterator[list[int]]:
    assert isinstance(sampler, Iterable)  # as every loader asks of it
    try:
        copied = copy.deepcopy(sampler, {id(one): one for one in datasets})
    except Exception:  # the user's objects may refuse to be copied in any way
        copied = copy.copy(sampler)
    for one in copied:
        yield [int(i) for i in one] if isinstance(one, Iterable) else [int(one)]
