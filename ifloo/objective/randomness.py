"""Work that draws random numbers and leaves no trace in those that others draw."""

from __future__ import annotations

import random
from collections.abc import Generator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch


@contextmanager
def undisturbed() -> Generator[None, None, None]:
    """On leaving, the random states of torch (CPU, CUDA), numpy and Python are those of before."""
    with ExitStack() as back:
        back.callback(torch.set_rng_state, torch.get_rng_state())
        if torch.cuda.is_initialized():
            back.callback(torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all())
        back.callback(np.random.set_state, np.random.get_state())
        back.callback(random.setstate, random.getstate())
        yield
