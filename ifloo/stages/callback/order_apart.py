"""A sampler of the user's that draws in a process of its own, so that its state in the fit stays as it is."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ifloo.objective.batch_samplers import SamplerBatches
from ifloo.objective.batches import Batch
from ifloo.objective.dealt_samplers import own_sampler
from ifloo.objective.epoch_batches import DRAWN_MOST, drawn_by
from ifloo.objective.loaders import training_dataset
from ifloo.stages.callback.reader_process import ReaderProcess

Drawn: TypeAlias = "int | list[int]"  # a row, or the rows of a batch


@runtime_checkable
class _HasEpochs(Protocol):
    """A sampler whose epoch a Trainer sets."""

    def set_epoch(self, epoch: int, /) -> object: ...


class _States(NamedTuple):
    """States of the random generators of torch, numpy and Python."""

    torch: Tensor
    numpy: dict[str, object]
    python: tuple[object, ...]

    @classmethod
    def now(cls) -> _States:
        return cls(torch.get_rng_state(), np.random.get_state(legacy=False), random.getstate())

    def set(self) -> None:
        torch.set_rng_state(self.torch)
        np.random.set_state(self.numpy)
        random.setstate(self.python)


class _Epoch(NamedTuple):
    """What a sampler draws in an epoch, and the random states at its end."""

    drawn: list[Drawn]
    states: _States


class Samplers:
    """The sampler of a loader and copies of it, by number, in the process that reads.

    Attributes:
        loader: Loader of the fit.
    """

    def __init__(self, loader: DataLoader[Batch]) -> None:
        """Copies nothing yet."""
        self.loader, self._samplers = loader, [own_sampler(drawn_by(loader))]

    @property
    def reads(self) -> dict[str, Callable[..., object]]:
        """Functions by the names that `OrderApart` calls."""
        return {"order": self.draw, "copied order": self.copied, "epoch": self.set_epoch}

    def draw(self, number: int, states: _States) -> _Epoch:
        """Draws an epoch that begins with some random states."""
        states.set()
        sampler, drawn, count = self._samplers[number], list[Drawn](), 0
        assert isinstance(sampler, Iterable)  # as every loader asks of it
        for one in sampler:
            drawn.append([int(i) for i in one] if isinstance(one, Iterable) else int(one))
            count += len(last) if isinstance(last := drawn[-1], list) else 1
            if count > DRAWN_MOST * len(training_dataset(self.loader)):
                break  # of an epoch without end no more is read anywhere
        return _Epoch(drawn, _States.now())

    def copied(self, number: int) -> int:
        """Copies a sampler and returns the number of the copy."""
        sampler, shared = self._samplers[number], {id(self.loader.dataset): self.loader.dataset}
        try:
            self._samplers.append(copy.deepcopy(sampler, shared))
        except Exception:  # the user's objects may refuse to be copied in any way
            self._samplers.append(copy.copy(sampler))
        return len(self._samplers) - 1

    def set_epoch(self, number: int, epoch: int) -> None:
        """Sets the epoch of a sampler, as a Trainer does."""
        sampler = self._samplers[number]
        own = sampler.sampler if isinstance(sampler, SamplerBatches) else sampler
        assert isinstance(own, _HasEpochs)
        own.set_epoch(epoch)


class OrderApart:
    """Draws of one of `Samplers`; a copy of it draws from a copy of the sampler."""

    def __init__(self, process: ReaderProcess, length: int | None, number: int = 0) -> None:
        """Draws nothing yet.

        Args:
            process: Process that reads.
            length: Length of the sampler; None if it has none.
            number: Number of the sampler.
        """
        self._process, self._length, self._number = process, length, number

    def __len__(self) -> int:
        if self._length is None:
            raise TypeError("this sampler has no length")
        return self._length

    def __iter__(self) -> Iterator[Drawn]:
        epoch = self._process.call("order", self._number, _States.now())
        assert isinstance(epoch, _Epoch)
        epoch.states.set()
        yield from epoch.drawn

    def __deepcopy__(self, memo: object) -> OrderApart:
        """Copies the sampler where it is."""
        number = self._process.call("copied order", self._number)
        assert isinstance(number, int)
        return type(self)(self._process, self._length, number)


class _WithEpochs(OrderApart):
    """The same of a sampler whose epoch a Trainer sets."""

    def set_epoch(self, epoch: int) -> None:
        self._process.call("epoch", self._number, epoch)


class _OfEpochs(OrderApart):
    """The same of a batch sampler whose own sampler has its epoch set."""

    @property
    def sampler(self) -> _WithEpochs:
        return _WithEpochs(self._process, self._length, self._number)


def order_apart(loader: DataLoader[Batch], process: ReaderProcess) -> OrderApart:
    """Returns the sampler of a loader, or its batch sampler of a class of its own, as one that draws in a process.

    Of a wrapper of Lightning's it is the sampler within.

    Args:
        loader: Loader of the fit.
        process: Process with the functions of `Samplers`.
    """
    sampler = own_sampler(drawn_by(loader))
    kind = OrderApart
    if isinstance(sampler, SamplerBatches):
        kind = _OfEpochs if isinstance(sampler.sampler, _HasEpochs) else OrderApart
    elif isinstance(sampler, _HasEpochs):
        kind = _WithEpochs
    named = type(type(sampler).__name__, (kind,), {})  # the name that messages give
    try:
        length = len(sampler) if isinstance(sampler, Sized) else None
    except (TypeError, NotImplementedError):
        length = None
    found: OrderApart = named(process, length)
    return found
