"""Objective that the epochs of a fit descend: the weight c_i of each sample in J(θ) = Σ_i c_i ℓ_i(θ) + R(θ).

An epoch takes a step on each of its batches. J is the mean of the losses of its batches, in expectation over the
shuffle. With the loss Σ_B a_i ℓ_i / Σ_B a_i of a batch B, a_i = 1 where it is the mean,

    c_i = E[(1 / number of batches) Σ_{B holding i} a_i / Σ_{j in B} a_j].

- Equal a_i, shuffled: c_i = 1/n, whatever the batches are; each sample is as likely as any other in the last, short one
  or among those that `drop_last` leaves out.
- One batch of all samples: c_i = a_i / Σ a.
- Shuffled batches with weights: the expectation over batches drawn without replacement (`drawn_shares`). Batches of one
  give 1/n: the weight cancels.
- Batches that are the same in each epoch (no shuffle, buckets): the mean over these batches. A sample in a short batch
  counts more; one in no batch has c_i = 0, and its score is 0: it was never trained on.
- Random batches of a sampler of the user's: the mean over epochs that are followed.

Accumulation divides each loss by the same number, in an incomplete last window too: c_i stays. Under `ddp` a step is
the mean over the processes, and c_i the mean over the batches of all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader

from ifloo.errors import InputError
from ifloo.objective.batches import Batch, MapDataset
from ifloo.objective.epoch_batches import EpochBatches, followed_batches, known_batches, size_of_batches

Numbers: TypeAlias = dict[str, str | float | int]
EQUAL = 1e-12  # relative difference of weights that are the same


@dataclass(frozen=True)
class EpochWeights:
    """Weights of the training samples in J, and in the loss of a batch.

    Attributes:
        shares: c_i of each sample, `[n]`, float64.
        in_batch: Relative weight a_i of each sample in the loss of a batch, `[n]`, float64; None if all are equal.
        batches: Noun phrase for the batches of an epoch; empty if it is one batch of all samples.
    """

    shares: Float[Tensor, " n"]
    in_batch: Float[Tensor, " n"] | None
    batches: str

    @classmethod
    def of_one_batch(cls, in_batch: Float[Tensor, " n"]) -> EpochWeights:
        """Returns c_i = a_i / Σ a, of an epoch that is one batch of all samples."""
        a = in_batch.double()
        return cls(a / a.sum(), a, "")

    def of_first(self, count: int) -> EpochWeights:
        """Returns the weights of the first samples in a J of these alone; equal ones if none of them has a weight."""
        if count == self.n:
            return self
        shares = self.shares[:count]
        equal = torch.full_like(shares, 1 / count)
        in_batch = None if self.in_batch is None else self.in_batch[:count]
        return EpochWeights(shares / shares.sum() if bool(shares.any()) else equal, in_batch, self.batches)

    @property
    def n(self) -> int:
        """Number of samples."""
        return len(self.shares)

    @property
    def untrained(self) -> int:
        """Number of samples that no batch holds, or that have no weight in any."""
        return int((self.shares == 0).sum())

    @property
    def even(self) -> bool:
        """Whether J is the plain mean."""
        return bool(((self.shares * self.n - 1).abs() <= EQUAL).all())

    def same_as(self, other: EpochWeights | None) -> bool:
        """Tells whether J has the same weights; None stands for the plain mean."""
        shares = torch.full_like(self.shares, 1 / self.n) if other is None else other.shares
        return bool(((self.shares - shares).abs() <= EQUAL * shares).all())

    @property
    def text(self) -> str:
        """Phrase for the batches that J is the mean over, with the range of n·c_i; empty for one batch of all."""
        factors = self.shares * self.n
        trained = factors[factors > 0]
        none = f"{self.untrained:,} of {self.n:,} samples have c_i = 0 and the score 0" if self.untrained else ""
        spread = "" if self.even else f"n c_i from {_short(trained.min())} to {_short(trained.max())}"
        return ", ".join(filter(None, [self.batches, spread, none])) if self.batches or none else ""

    def record(self) -> Numbers:
        """Returns the weights in short, for a file."""
        factors = self.shares * self.n
        return {
            "batches": self.batches or "one batch of all samples",
            "smallest_n_c": float(factors.min()),
            "largest_n_c": float(factors.max()),
            "untrained": self.untrained,
        }


def _short(factor: Tensor) -> str:
    return f"{float(factor):.3g}"


def epoch_weights(
    loader: DataLoader[Batch], in_batch: Float[Tensor, " n"] | None = None, ordered: bool = True
) -> EpochWeights | None:
    """Returns the weights of the samples in the J of a fit on this loader; None if J is the plain mean.

    Args:
        loader: Training loader of the fit, which `refuse_partial` has passed.
        in_batch: Relative weights a_i >= 0 of the samples in the loss of a batch; None if they are equal.
        ordered: Whether a loader in order is one that the fit ran in order; else it stands for one that shuffles.

    Raises:
        InputError: An epoch has no batch, or the weights lie too far apart.
    """
    batches = batches_of_epoch(loader, ordered)
    found = EpochWeights(batches.shares(in_batch), None if in_batch is None else in_batch.double(), batches.text)
    return None if found.even and in_batch is None else found


def batches_of_epoch(loader: DataLoader[Batch], ordered: bool = True) -> EpochBatches:
    """Returns the batches of an epoch of a loader; see `epoch_weights`.

    Raises:
        InputError: There is no batch.
    """
    assert isinstance(loader.dataset, MapDataset)
    n = len(loader.dataset)
    found = known_batches(loader, n, ordered) or followed_batches(loader, n)
    if n and not found.count:
        size, left_out = size_of_batches(loader)
        why = f"drop_last=True leaves out the {n} samples, which fill no batch of {size}" if left_out else "no draw"
        raise InputError(
            f"An epoch of the training loader has no batch: {why}. Nothing was trained.\n"
            "  Give smaller batches or drop_last=False, and fit again."
        )
    return found
