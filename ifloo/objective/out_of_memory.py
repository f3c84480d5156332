"""Work in parts as large as memory holds: what a failed allocation looks like, and half as many at once after one."""

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

# What a RuntimeError says where there is no class for it: torch's allocators for a processor ("can't allocate memory",
# "not enough memory"), Apple GPUs ("MPS backend out of memory") and others; cuBLAS and cuDNN for their workspaces.
_TEXTS = (
    "out of memory",
    "DefaultCPUAllocator",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_NOT_SUPPORTED",  # cuDNN's answer to a convolution that leaves it no workspace
)


def is_out_of_memory(error: BaseException) -> bool:
    """Tells whether an allocation failed, on a device or on the host."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    if not isinstance(error, RuntimeError) or isinstance(error, WorkError):  # a WorkError comes after all attempts
        return False
    text = str(error).lower()
    return any(one.lower() in text for one in _TEXTS)


def in_parts(
    items: Sequence[Item], at_once: int, work: Callable[[Sequence[Item]], Sequence[Result]], name: str
) -> tuple[list[Result], int]:
    """Works through items in parts, halved for good whenever one does not fit into memory.

    Args:
        items: What to work on.
        at_once: Size of the first parts.
        work: Gives the results of one part.
        name: What the items are, in the plural, for the log.

    Returns:
        The results of all parts, and the size of the last ones.

    Raises:
        Exception: Whatever `work` raises, lack of memory for a single item included.
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
        # After the handler: the exception holds on to the tensors of the part that failed.
        log.warning("out of memory with %d %s at once (%s): going on with %d.", len(part), name, reason, at_once)
        _release()
    return done, at_once


def first_line(error: BaseException) -> str:
    """Gives the first line of a message, or the class of an error without one."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _release() -> None:
    """Gives what torch keeps for later allocations back to the device."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()
