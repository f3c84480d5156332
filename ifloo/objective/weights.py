"""Sample weights w_i by sample id: one default and a few exceptions, so that a refit needs no vector of length n."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ifloo.errors import InputError

Removal = Literal["drop", "zero_weight"]


@dataclass(frozen=True)
class SampleWeights:
    """Map w from sample id to weight: `values` for the listed `ids`, `default` for all others.

    Attributes:
        default: Weight of every id that is not listed.
        ids: Listed ids, sorted.
        values: Weight of each listed id.
    """

    default: float = 1.0
    ids: Int[Tensor, " g"] = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    values: Float[Tensor, " g"] = field(default_factory=lambda: torch.empty(0, dtype=torch.float64))

    @classmethod
    def removing(cls, ids: Sequence[int], removal: Removal, n: int, share: float | None = None) -> SampleWeights:
        """Returns the weights of a refit without `ids`.

        With `zero_weight`, w_i = 0 and the mean still divides by n. With `drop`, the mean runs over the n − g remaining
        samples; that is, w_i = 0 and every other weight is n / (n − g) with the same factor 1/n.

        Args:
            ids: Ids of the removed samples.
            removal: Meaning of the removal.
            n: Number of all samples.
            share: Σ c_i of the removed samples in J = Σ c_i ℓ_i; None stands for g / n. The weights of a dropped sample
                are then divided among the others: every other weight is 1 / (1 − share).

        Raises:
            InputError: An id is repeated, or no sample would remain.
        """
        if len(set(ids)) != len(ids):
            raise InputError(f"Each id can be removed once, got {sorted(ids)}.")
        if len(ids) >= n:
            raise InputError(f"Removing {len(ids)} of {n} samples leaves nothing to train on.")
        if share is not None and not share < 1 - 1e-12:
            raise InputError(f"Removing {len(ids)} of {n} samples leaves none that was trained on.")
        whole = n / (n - len(ids)) if share is None else 1 / (1 - share)
        default = whole if removal == "drop" else 1.0
        return cls(default, torch.tensor(sorted(ids), dtype=torch.int64), torch.zeros(len(ids), dtype=torch.float64))

    @classmethod
    def stepped(cls, id: int, weight: float) -> SampleWeights:
        """Returns weights in which one sample has this weight and all others have weight 1."""
        return cls(1.0, torch.tensor([id], dtype=torch.int64), torch.tensor([weight], dtype=torch.float64))

    def equal_for(self, ids: Int[Tensor, " b"]) -> bool:
        """Tells whether all of these ids have the default weight."""
        return len(self.ids) == 0 or not bool(torch.isin(ids.cpu(), self.ids).any())

    def of(self, ids: Int[Tensor, " b"], dtype: torch.dtype) -> Float[Tensor, " b"]:
        """Returns the weights of the samples with these ids, dimensionless, on the device of the ids."""
        weights = torch.full(ids.shape, self.default, dtype=dtype, device=ids.device)
        if len(self.ids) == 0:
            return weights
        keys = self.ids.to(ids.device)
        nearest = torch.searchsorted(keys, ids).clamp(max=len(keys) - 1)
        return torch.where(keys[nearest] == ids, self.values.to(ids.device, dtype)[nearest], weights)
