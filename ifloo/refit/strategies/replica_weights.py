"""Sample weights of K replicas, by sample id."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ifloo.objective import SampleWeights


@dataclass(frozen=True)
class ReplicaWeights:
    """Sample weights w of each replica: `values` for the listed `ids`, `default` for all others.

    Attributes:
        default: Weight of the samples not in `ids`, `[k]`.
        ids: Ids listed by any replica, `[g]`, ascending.
        values: Weights of these ids, `[k, g]`.
    """

    default: Float[Tensor, " k"]
    ids: Int[Tensor, " g"]
    values: Float[Tensor, "k g"]

    @classmethod
    def of(cls, weights: Sequence[SampleWeights], device: torch.device | None = None) -> ReplicaWeights:
        """Combines the sample weights of replicas, in their order."""
        ids = torch.cat([w.ids for w in weights]).unique()  # ascending
        default = torch.tensor([w.default for w in weights], dtype=torch.float64)
        values = torch.stack([w.of(ids, torch.float64) for w in weights])
        # Apple GPUs have no float64; there the weights of the model are float32 too.
        dtype = torch.float32 if device is not None and device.type == "mps" else torch.float64
        return cls(default.to(device, dtype), ids.to(device), values.to(device, dtype))

    def rows(self, ids: Int[Tensor, " b"]) -> Float[Tensor, "k b"]:
        """Returns the weights of the samples of a batch, by their ids."""
        weights = self.default[:, None].expand(-1, len(ids))
        if len(self.ids) == 0:
            return weights
        place = torch.searchsorted(self.ids, ids).clamp(max=len(self.ids) - 1)
        return torch.where(self.ids[place] == ids, self.values[:, place], weights)
