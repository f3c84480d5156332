"""A training run as data: which samples each step saw, how far it went, and a state now and then to replay it from."""

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
    """What one step of an optimizer turns into the next.

    Attributes:
        theta: the parameters, `[p]`.
        moments: what the optimizer remembers, each `[p]`, in an order of its own (momentum; Adam's two moments).
    """

    theta: Float[Tensor, " p"]
    moments: tuple[Float[Tensor, " p"], ...]


class Update(ABC):
    """The rule of an optimizer: gradient in, next state out; a pure function that torch.func can differentiate."""

    @abstractmethod
    def start(self, theta: Float[Tensor, " p"]) -> State:
        """The state before the first step."""

    @abstractmethod
    def step(
        self, state: State, gradient: Float[Tensor, " p"], rate: Float[Tensor, ""], count: Float[Tensor, ""]
    ) -> State:
        """The state after step number `count` (from 1) with this learning rate."""

    @abstractmethod
    def gain(self, state: State, count: int) -> float:
        """How far a steady unit gradient moves a parameter a step of unit rate, mean over parameters: 1 for plain SGD.

        Args:
            state: after step `count`.
            count: from 1.
        """


@dataclass(frozen=True)
class RecordedRun:
    """T optimizer steps on J of a batch, (1/b) Σ w_i ℓ_i + R.

    Attributes:
        update: the optimizer's rule.
        batch_ids: `[b]` sample ids of each of the T steps.
        rates: `[T]`, learning rate of each step.
        saved: ascending numbers of steps after which the state was kept; 0 and T are among them.
        state: reads the state after so many steps, for a number in `saved`.
    """

    update: Update
    batch_ids: Sequence[Int[Tensor, " _"]]
    rates: Float[Tensor, " T"]
    saved: Sequence[int]
    state: Callable[[int], State]

    @property
    def steps(self) -> int:
        """T."""
        return len(self.batch_ids)

    def visits(self, ids: Int[Tensor, " n"], first: int = 0, last: int | None = None) -> Float[Tensor, " n"]:
        """Σ over steps first..last−1 of rate/b wherever sample i was in the batch, `[n]`: its share of the steps."""
        shares = torch.zeros(len(ids), dtype=torch.float64)
        order = torch.argsort(ids)
        for seen, rate in zip(self.batch_ids[first:last], self.rates[first:last].tolist(), strict=True):
            place = order[torch.searchsorted(ids[order], seen)]
            shares[place] += rate / len(seen)
        return shares


def require_run(run: RecordedRun | None, method: str) -> RecordedRun:
    """The recorded run that a method needs.

    Raises:
        InputError: the run was not recorded.
    """
    if run is None:
        raise InputError(
            f"{method} follows the training run, and this model comes without one.\n"
            f"  {HOW_TO_RECORD}; or use a method that looks at the final weights alone, such as GradientDot."
        )
    return run


def segments(run: RecordedRun, most: int | None) -> list[tuple[int, int]]:
    """The run cut into at most so many stretches of steps, each from one saved state to another, none left out.

    Raises:
        InputError: into none.
    """
    refuse_no_checkpoint(most)
    there = len(run.saved) - 1
    count = there if most is None else min(there, most)
    ends = [run.saved[(k * there) // count] for k in range(count + 1)] if count else []
    return list(pairwise(ends))


def training_time(run: RecordedRun) -> float:
    """How far a run went in units of gradient descent: Σ learning rate x gain of the update, squared parameters a nat.

    Heavy-ball momentum μ makes steps 1/(1 − μ) times as long (Polyak 1964); Adam scales each parameter, and the mean of
    its scales, as they were at the end of each recorded stretch, stands for all.

    Raises:
        InputError: it went nowhere.
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
    if checkpoints is not None and checkpoints < 1:
        raise InputError(f"TracIn needs checkpoints >= 1 (or null, for all that were saved), got {checkpoints}.")
