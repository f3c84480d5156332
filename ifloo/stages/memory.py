"""How many queries at once: by memory, and with half as many where that was too much."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Sequence

import torch

from ifloo.errors import WorkError

log = logging.getLogger(__name__)
BLOCK_BYTES = 256 << 20  # of the scores of a block of queries, and of their directions


def queries_at_once(n: int, p: int, score_bytes: int, direction_bytes: int) -> int:
    """How many queries fit: their scores `[m, n]` and their directions `[m, p]`, each within `BLOCK_BYTES`."""
    return max(1, min(BLOCK_BYTES // (n * score_bytes), BLOCK_BYTES // (p * direction_bytes)))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a device or on the host."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    if not isinstance(error, RuntimeError) or isinstance(error, WorkError):  # ours, after all that could be done
        return False
    text = str(error)
    return "out of memory" in text.lower() or "DefaultCPUAllocator" in text


def in_blocks(test_ids: Sequence[int], size: int, work: Callable[[Sequence[int]], None]) -> None:
    """Works through test ids in blocks, halved for good whenever one does not fit into memory.

    Raises:
        WorkError: one query alone does not fit.
    """
    start = 0
    while start < len(test_ids):
        now = test_ids[start : start + size]
        try:
            work(now)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if len(now) == 1:
                raise WorkError(_does_not_fit(now[0], error)) from error
            size, reason = len(now) // 2, _first_line(error)
        else:
            start += len(now)
            continue
        # After the handler: the exception held on to the tensors of the block.
        log.warning("out of memory with %d tests at once (%s): going on with %d.", len(now), reason, size)
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _does_not_fit(t: int, error: BaseException) -> str:
    return (
        f"Out of memory with one test (id {t}) at a time: {_first_line(error)}\n"
        "  Finished tests are kept. Lower attribution.batch_size (training samples at once), use "
        "attribution.dtype=float32, or attribute fewer parameters (attribution.parameters)."
    )
