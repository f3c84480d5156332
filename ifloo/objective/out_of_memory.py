"""Work in parts that fit into memory: failed allocations are recognised, and the part size is halved after each."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from ifloo.errors import WorkError

log = logging.getLogger(__name__)
Item = TypeVar("Item")
Result = TypeVar("Result")

# Texts of a RuntimeError for which torch has no exception class: failures of its allocators for a processor ("can't
# allocate memory", "not enough memory"), for Apple GPUs ("MPS backend out of memory") and others, and of cuBLAS and
# cuDNN to allocate their workspaces.
_TEXTS = (
    "out of memory",
    "DefaultCPUAllocator",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Tells whether the cause of an error is a failed allocation, on a device or on the host."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    if not isinstance(error, RuntimeError) or isinstance(error, WorkError):  # a WorkError follows all attempts
        return False
    text = str(error).lower()
    return any(known.lower() in text for known in _TEXTS)


def in_parts(
    items: Sequence[Item], at_once: int, work: Callable[[Sequence[Item]], Sequence[Result]], name: str
) -> tuple[list[Result], int]:
    """Processes items in parts; whenever a part does not fit into memory, the part size is halved for all that follow.

    Args:
        items: Items to process.
        at_once: Initial number of items per part.
        work: Function that returns the results of one part.
        name: Plural noun for the items, used in the log.

    Returns:
        The results of all items, and the final number of items per part.

    Raises:
        Exception: Any error of `work` other than lack of memory, and lack of memory for a single item.
    """
    done: list[Result] = []
    start = 0
    while start < len(items):
        part = items[start : start + at_once]
        try:
            done += work(part)
        except Exception as error:
            if len(part) == 1 or not is_out_of_memory(error):
                raise
            at_once, reason = len(part) // 2, first_line(error)
        else:
            start += len(part)
            continue
        # Not within the handler: until it ends, the exception keeps the tensors of the failed part alive.
        log.warning("out of memory with %d %s at once (%s): going on with %d.", len(part), name, reason, at_once)
        _release()
    return done, at_once


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or its class if it has no message."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _release() -> None:
    """Returns the memory that torch caches for later allocations to the device."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()
