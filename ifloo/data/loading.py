"""What data modules share whose sets make whole batches themselves (`__getitems__`)."""

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
    """Batches as the set makes them, uncopied; a batch size beyond the set is the whole set, which has no order."""
    n = len(cast(Sized, data))
    return DataLoader(
        data,
        batch_size=min(batch_size, n),
        shuffle=shuffle and batch_size < n,
        num_workers=num_workers,
        collate_fn=_as_it_is,
        persistent_workers=num_workers > 0,
    )


def _as_it_is(batch: Any) -> Any:
    """The set has made the batch; a named function, so that worker processes can receive it."""
    return batch


@rank_zero_only
def say(log: logging.Logger, level: int, line: str) -> None:
    """One line in the name of a data module, however many processes there are."""
    log.log(level, line)
