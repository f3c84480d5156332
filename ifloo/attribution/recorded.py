"""A training run as data: which samples each step saw, how far it went, and a state now and then to replay it from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


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
