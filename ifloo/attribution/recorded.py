"""A recorded training run: the samples and learning rate of each step, and saved states from which to replay it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ifloo.errors import InputError

HOW_TO_RECORD = (
    "Record the training: the ids and the learning rate of every step and a state now and then, as `RecordedRun` "
    "holds them"
)


@dataclass(frozen=True)
class State:
    """State of a training run between two optimizer steps.

    Attributes:
        theta: Parameters, `[p]`.
        moments: Buffers of the optimizer, each `[p]`, in the order that its `Update` defines (momentum; Adam's two
            moments).
    """

    theta: Float[Tensor, " p"]
    moments: tuple[Float[Tensor, " p"], ...]


class Update(ABC):
    """Update rule of an optimizer, from gradient and state to the next state: a pure function for torch.func."""

    @abstractmethod
    def start(self, theta: Float[Tensor, " p"]) -> State:
        """Returns the state before the first step."""

    @abstractmethod
    def step(
        self, state: State, gradient: Float[Tensor, " p"], rate: Float[Tensor, ""], count: Float[Tensor, ""]
    ) -> State:
        """Returns the state after step number `count`, counted from 1, with learning rate `rate`."""

    @abstractmethod
    def gain(self, state: State, count: int) -> float:
        """Computes the length of a step of unit rate along a constant unit gradient; 1 for plain SGD.

        Args:
            state: State after step `count`.
            count: Number of the step, counted from 1.

        Returns:
            Mean over the parameters, dimensionless.
        """


@dataclass(frozen=True)
class RecordedRun:
    """T optimizer steps, each on J of a batch, (1/b) Σ w_i ℓ_i + R.

    Attributes:
        update: Update rule of the optimizer.
        batch_ids: Sample ids of each of the T steps, `[b]`.
        rates: Learning rate of each step, `[T]`.
        saved: Numbers of steps, ascending, after which the state was saved; they include 0 and T.
        state: Function that reads the state after a number of steps in `saved`.
    """

    update: Update
    batch_ids: Sequence[Int[Tensor, " _"]]
    rates: Float[Tensor, " T"]
    saved: Sequence[int]
    state: Callable[[int], State]

    @property
    def steps(self) -> int:
        """Number T of steps."""
        return len(self.batch_ids)

    def visits(self, ids: Int[Tensor, " n"], first: int = 0, last: int | None = None) -> Float[Tensor, " n"]:
        """Sums rate/b over the steps first..last−1 whose batch held sample i: its share of the steps, `[n]`."""
        shares = torch.zeros(len(ids), dtype=torch.float64)
        order = torch.argsort(ids)
        for seen, rate in zip(self.batch_ids[first:last], self.rates[first:last].tolist(), strict=True):
            positions = order[torch.searchsorted(ids[order], seen)]
            shares[positions] += rate / len(seen)
        return shares


def require_run(run: RecordedRun | None, method: str) -> RecordedRun:
    """Returns the recorded run that a method needs.

    Raises:
        InputError: If the run was not recorded.
    """
    if run is None:
        raise InputError(
            f"{method} follows the training run, and this model comes without one.\n"
            f"  {HOW_TO_RECORD}; or use a method that looks at the final weights alone, such as GradientDot."
        )
    return run


def segments(run: RecordedRun, most: int | None) -> list[tuple[int, int]]:
    """Divides the run into at most `most` consecutive ranges of steps, each from one saved state to another.

    Returns:
        First step and end (exclusive) of each range. They cover all steps. None for `most` uses every saved state.

    Raises:
        InputError: If `most` is below 1.
    """
    refuse_no_checkpoint(most)
    available = len(run.saved) - 1
    count = available if most is None else min(available, most)
    ends = [run.saved[(k * available) // count] for k in range(count + 1)] if count else []
    return list(pairwise(ends))


def training_time(run: RecordedRun) -> float:
    """Computes the time for which gradient descent would train as far as the run: Σ learning rate x gain of the update.

    The unit is squared parameters per nat. Heavy-ball momentum μ makes steps 1/(1 − μ) times as long (Polyak 1964).
    Adam scales each parameter; the mean of these scales at the end of each saved range of steps is used for all.

    Raises:
        InputError: If the time is not positive and finite.
    """
    total = sum(
        float(run.rates[first:last].double().sum()) * run.update.gain(run.state(last), last)
        for first, last in pairwise(run.saved)
    )
    if not 0 < total < math.inf:
        raise InputError(
            f"The learning rates of the recorded run's {run.steps} steps come to {total:g} in all: nothing was trained."
            "\n  Give the rate or the damping itself, or record a run that trains."
        )
    return total


def refuse_no_checkpoint(checkpoints: int | None) -> None:
    """Checks that TracIn uses at least one checkpoint.

    Raises:
        InputError: If the number of checkpoints is below 1.
    """
    if checkpoints is not None and checkpoints < 1:
        raise InputError(f"TracIn needs checkpoints >= 1 (or null, for all that were saved), got {checkpoints}.")
