"""Helpers of the data modules whose data sets return whole batches (`__getitems__`)."""

from __future__ import annotations

import logging
from collections.abc import Sized
from typing import Any, cast

from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.utils.data import DataLoader, Dataset


def loader_of(
    data: Dataset[dict[str, Tensor]], batch_size: int, num_workers: int, shuffle: bool = False
) -> DataLoader[dict[str, Tensor]]:
    """Returns a loader of the batches of `data.__getitems__`, uncopied; the batch size is at most the set's size."""
    return DataLoader(
        data,
        batch_size=min(batch_size, len(cast(Sized, data))),
        shuffle=shuffle,
        num_workers=num_workers,
        collate_fn=_unchanged,
        persistent_workers=num_workers > 0,
    )


def _unchanged(batch: Any) -> Any:
    """Returns the batch, which the data set has already collated; a named function can be sent to worker processes."""
    return batch


@rank_zero_only
def log_on_rank_zero(log: logging.Logger, level: int, line: str) -> None:
    """Logs one line of a data module, in the process of rank 0 only."""
    log.log(level, line)
