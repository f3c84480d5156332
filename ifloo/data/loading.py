"""Helpers of the data modules whose data sets return whole batches (`__getitems__`)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol, TypeVar, runtime_checkable

from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.utils.data import DataLoader

T = TypeVar("T")


@runtime_checkable
class BatchSet(Protocol):
    """Protocol of data sets of known length that return whole batches, as dicts of tensors."""

    def __len__(self) -> int: ...

    def __getitems__(self, rows: Sequence[int], /) -> dict[str, Tensor]: ...


def loader_of(
    data: BatchSet, batch_size: int, num_workers: int, shuffle: bool = False
) -> DataLoader[dict[str, Tensor]]:
    """Returns a loader of the batches of `data.__getitems__`, uncopied; a full batch is never shuffled."""
    n = len(data)
    return DataLoader(
        data,  # type: ignore[arg-type]  # the type asks for a Dataset; a length and items suffice
        batch_size=min(batch_size, n),
        shuffle=shuffle and batch_size < n,
        num_workers=num_workers,
        collate_fn=_unchanged,
        persistent_workers=num_workers > 0,
    )


def _unchanged(batch: T) -> T:
    """Returns the batch, which the data set has already collated; a named function can be sent to worker processes."""
    return batch


@rank_zero_only
def log_on_rank_zero(log: logging.Logger, level: int, line: str) -> None:
    """Logs one line of a data module, in the process of rank 0 only."""
    log.log(level, line)
