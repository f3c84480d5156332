"""Sample ids: those of a batch of queries, and the positions of ids among those of the training data."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from ifloo.errors import InputError
from ifloo.objective.batches import Batch, batch_size, sample_ids


def query_ids(queries: Batch) -> Int[Tensor, " m"]:
    """Returns the ids of a batch of queries, on the host; positions in the batch if it carries no ids."""
    ids = sample_ids(queries)
    return torch.arange(batch_size(queries)) if ids is None else ids.cpu()


def positions_of(train_ids: Int[Tensor, " n"], ids: Sequence[int]) -> Int[Tensor, " g"]:
    """Finds the positions of these ids among those of the training data, which need not be in order.

    Raises:
        InputError: An id is not one of the training data.
    """
    requested = torch.as_tensor(list(ids), dtype=torch.int64)
    order = torch.argsort(train_ids)
    nearest = torch.searchsorted(train_ids[order], requested).clamp(max=len(order) - 1)
    positions = order[nearest]
    if len(unknown := requested[train_ids[positions] != requested]):
        raise InputError(
            f"Ids {unknown.tolist()[:5]} are not among the {len(train_ids)} training ids.\n"
            "  Give ids of training samples."
        )
    return positions
