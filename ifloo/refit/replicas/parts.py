"""Tasks in parts as large as memory holds."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from lightning.pytorch.utilities.memory import garbage_collection_cuda, is_oom_error

from ifloo.refit.path import RefitTask
from ifloo.refit.recipe import Refit

logger = logging.getLogger(__name__)
Train = Callable[[Sequence[RefitTask]], list[Refit]]


def in_parts(tasks: Sequence[RefitTask], at_once: int, train: Train) -> tuple[list[Refit], int]:
    """Trains the tasks, halving what is trained at once when memory runs out; also returns what it came to.

    Raises:
        RuntimeError: of the fit, or memory does not hold even one.
        MemoryError: memory does not hold even one.
    """
    done: list[Refit] = []
    while len(done) < len(tasks):
        part = tasks[len(done) : len(done) + at_once]
        try:
            done += train(part)
            continue
        except (RuntimeError, MemoryError) as error:
            if len(part) == 1 or not (isinstance(error, MemoryError) or is_oom_error(error)):
                raise
            at_once = len(part) // 2
        logger.warning("out of memory with %d replicas at once; going on with %d", len(part), at_once)
        garbage_collection_cuda()  # outside of `except`: the error holds on to what it was raised among
    return done, at_once
