"""A second set-up of a data module under another seed: where it gives other training samples, a split is random."""

from __future__ import annotations

import copy
import functools
import inspect
import logging
import random
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TypeAlias

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ifloo.data.fit_record import content_digest, spread
from ifloo.data.subset_rows import same_rows, subset_rows
from ifloo.objective.batches import Batch
from ifloo.objective.counterparts import counterparts
from ifloo.objective.loaders import training_dataset, unwrap_loader
from ifloo.objective.randomness import undisturbed
from ifloo.objective.seeded_draws import tensors_in_memory

log = logging.getLogger(__name__)
Source: TypeAlias = L.LightningDataModule | L.LightningModule
OTHER_SEED = 20_260_917  # any that is hardly that of a fit
ROWS_COMPARED = 8  # samples that are compared where no `Subset` differs and the data are not tensors in memory
RANDOM_SPLIT = (
    "set-up draws the split at random: two set-ups with different seeds give other training samples.\n"
    "  Give the seed of the fit (--seed_everything), or a generator in random_split. "
    "A fit with InfluenceCallback, or by `ifloo fit`, records its split."
)
UNSEEDED_SPLIT = (
    "the training samples are drawn by random numbers that no seed sets (numpy.random.default_rng(), "
    "random.SystemRandom, a generator of its own), or by a generator whose state carries over from one set-up to the "
    "next: two set-ups with one seed give other samples.\n"
    "  Make that generator in setup, with a fixed seed, and fit again. A fit with InfluenceCallback, or by `ifloo "
    "fit`, records its split."
)


class SecondSetup:
    """A data module that is not set up yet, to be set up under another seed beside the one in use.

    One that saves all its arguments is made from them, so that what its constructor draws is drawn again; any other is
    copied. Data sets and tensors that it holds are shared with the copy.
    """

    def __init__(self, data: Source, make: Callable[[], Source] | None = None) -> None:
        """Copies the data module; it must not be set up yet.

        Args:
            data: Data module, or module that holds its loaders itself.
            make: Function that makes another one, if there is one.
        """
        held = vars(data).values()
        self._trainer = next((x for x in held if isinstance(x, counterparts(L.Trainer))), None)
        self._make: Callable[[], Source | None]
        arguments = _saved_arguments(data)
        if make is not None or arguments is not None:
            self._make = make or functools.partial(type(data), **(arguments or {}))
            return
        shared: dict[int, object] = {id(x): x for x in held if isinstance(x, (Dataset, Tensor)) or x is self._trainer}
        try:
            copied = copy.deepcopy(data, dict(shared))
        except Exception as error:  # the user's objects may refuse to be copied in any way
            log.debug("the data module is not set up twice: %s", error)
            copied = None
        self._make = lambda: None if copied is None else copy.deepcopy(copied, dict(shared))

    def differs(self, loader: DataLoader[Batch]) -> bool | None:
        """Sets up under another seed and compares the training samples; random states are restored.

        Args:
            loader: Training loader of the data module in use.

        Returns:
            None where there is no second data module, or it cannot be set up.
        """
        other = self._loader()
        return None if other is None else _differ(loader, other)

    def differs_from_itself(self) -> bool:
        """Sets up twice under one seed and compares the training samples; random states are restored."""
        one, other = self._loader(), self._loader()
        return one is not None and other is not None and _differ(one, other)

    def _loader(self) -> DataLoader[Batch] | None:
        """Sets up under another seed; returns the training loader, or None where that is not possible."""
        with undisturbed(), _without_notes():
            random.seed(OTHER_SEED)
            np.random.seed(OTHER_SEED)
            torch.default_generator.manual_seed(OTHER_SEED)
            try:
                if (data := self._make()) is None:
                    return None
                if self._trainer is not None:
                    data.trainer = self._trainer
                data.setup("fit")
                other = data.train_dataloader()
            except Exception as error:  # code of the user, which has just run without it
                log.debug("the data module is not set up twice: %s", error)
                return None
            return other if isinstance(other, DataLoader) else None


@contextmanager
def _without_notes() -> Generator[None, None, None]:
    """Keeps the notes of ifloo's own data modules from being logged a second time."""
    log_of_data = logging.getLogger("ifloo.data")
    before = log_of_data.level
    log_of_data.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log_of_data.setLevel(before)


def _saved_arguments(data: Source) -> dict[str, object] | None:
    """Returns the arguments of the constructor, if the data module saves all of them."""
    named = list(inspect.signature(type(data).__init__).parameters.values())[1:]  # without self, of any name
    if any(one.kind in (one.VAR_KEYWORD, one.VAR_POSITIONAL) or one.name not in data.hparams for one in named):
        return None
    return {one.name: data.hparams[one.name] for one in named}


def _differ(one: DataLoader[Batch], other: DataLoader[Batch]) -> bool:
    a, b = training_dataset(one), training_dataset(other)
    if len(a) != len(b) or not same_rows(subset_rows(a), subset_rows(b)):
        return True
    rows = range(len(a)) if tensors_in_memory(a) is not None else spread(len(a), ROWS_COMPARED)
    return content_digest(*unwrap_loader(one), rows) != content_digest(*unwrap_loader(other), rows)
