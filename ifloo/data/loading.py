"""What data modules share whose sets make whole batches themselves (`__getitems__`)."""

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
    """A dataset of known length whose samples are dicts of tensors, and which makes whole batches of them."""

    def __len__(self) -> int: ...

    def __getitems__(self, rows: Sequence[int], /) -> dict[str, Tensor]: ...


def loader_of(
    data: BatchSet, batch_size: int, num_workers: int, shuffle: bool = False
) -> DataLoader[dict[str, Tensor]]:
    """Batches as the set makes them, uncopied; a batch size beyond the set is the whole set, which has no order."""
    n = len(data)
    return DataLoader(
        data,  # type: ignore[arg-type]  # torch asks for a Dataset and takes whatever has a length and items
        batch_size=min(batch_size, n),
        shuffle=shuffle and batch_size < n,
        num_workers=num_workers,
        collate_fn=_as_it_is,
        persistent_workers=num_workers > 0,
    )


def _as_it_is(batch: T) -> T:
    """The set has made the batch; a named function, so that worker processes can receive it."""
    return batch


@rank_zero_only
def say(log: logging.Logger, level: int, line: str) -> None:
    """One line in the name of a data module, however many processes there are."""
    log.log(level, line)
