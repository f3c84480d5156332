"""Sample weights w_i, looked up by sample id: one default and few exceptions, so that a refit costs no vector of n."""

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
    """w: id -> weight. Every id has weight `default` but the `ids` listed, which have `values`."""

    default: float = 1.0
    ids: Int[Tensor, " g"] = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    values: Float[Tensor, " g"] = field(default_factory=lambda: torch.empty(0, dtype=torch.float64))

    @classmethod
    def removing(cls, ids: Sequence[int], removal: Removal, n: int) -> SampleWeights:
        """The weights of a refit without `ids`.

        `zero_weight`: w_i = 0, n stays. `drop`: the mean runs over the n − g that remain, that is, w_i = 0 and every
        other weight n / (n − g) under the same 1/n.

        Raises:
            InputError: a repeated id, or nothing would remain.
        """
        if len(set(ids)) != len(ids):
            raise InputError(f"Each id can be removed once, got {sorted(ids)}.")
        if len(ids) >= n:
            raise InputError(f"Removing {len(ids)} of {n} samples leaves nothing to train on.")
        default = n / (n - len(ids)) if removal == "drop" else 1.0
        return cls(default, torch.tensor(sorted(ids), dtype=torch.int64), torch.zeros(len(ids), dtype=torch.float64))

    @classmethod
    def stepped(cls, id: int, weight: float) -> SampleWeights:
        """One sample with another weight, all others 1."""
        return cls(1.0, torch.tensor([id], dtype=torch.int64), torch.tensor([weight], dtype=torch.float64))

    def of(self, ids: Int[Tensor, " b"], dtype: torch.dtype) -> Float[Tensor, " b"]:
        """The weights of a batch with these sample ids, dimensionless, on the device of the ids."""
        weights = torch.full(ids.shape, self.default, dtype=dtype, device=ids.device)
        if len(self.ids) == 0:
            return weights
        keys = self.ids.to(ids.device)
        place = torch.searchsorted(keys, ids).clamp(max=len(keys) - 1)
        return torch.where(keys[place] == ids, self.values.to(ids.device, dtype)[place], weights)
