"""Isolation of work that draws random numbers from the global random states."""

from __future__ import annotations

import random
from collections.abc import Generator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch


@contextmanager
def undisturbed() -> Generator[None, None, None]:
    """Restores the random states of torch (CPU, CUDA), numpy and Python on exit."""
    with ExitStack() as restore:
        restore.callback(torch.set_rng_state, torch.get_rng_state())
        if torch.cuda.is_initialized():
            restore.callback(torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all())
        restore.callback(np.random.set_state, np.random.get_state())
        restore.callback(random.setstate, random.getstate())
        yield
