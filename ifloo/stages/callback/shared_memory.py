"""Memory that a process shares with the one that it is forked from: what is written there is written for both."""

from __future__ import annotations

from collections.abc import Iterable
from multiprocessing.managers import BaseProxy
from multiprocessing.shared_memory import ShareableList, SharedMemory
from multiprocessing.sharedctypes import SynchronizedBase

import numpy as np
from torch import Tensor

_WRITABLE = ("r+", "w+")  # modes of a memmap that writes to its file
_OF_PROCESSES = (SynchronizedBase, SharedMemory, ShareableList, BaseProxy)


def shared_with_processes(found: Iterable[object]) -> tuple[str, ...]:
    """Returns the kinds of objects whose memory is shared and can be written, each once.

    Args:
        found: Objects of any kind.
    """
    kinds: dict[str, None] = {}
    for one in found:
        if isinstance(one, Tensor) and one.device.type == "cpu" and one.is_shared():
            kinds["a tensor in shared memory"] = None
        elif isinstance(one, np.ndarray) and _is_mapped(one):
            kinds["a writable memmap"] = None
        elif isinstance(one, _OF_PROCESSES):
            kinds[f"a {type(one).__name__} of multiprocessing"] = None
    return tuple(kinds)


def _is_mapped(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> bool:
    """Whether an array is a memmap, or a view of one, that writes to its file."""
    part: object = array
    while isinstance(part, np.ndarray):
        if isinstance(part, np.memmap):
            return part.mode in _WRITABLE
        part = part.base
    return False
