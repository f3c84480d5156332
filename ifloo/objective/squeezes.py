"""Whether code takes the dimension of the samples from a batch of one, by a squeeze() that names no dimension."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import torch
from torch import Tensor

from ifloo.objective.function_calls import WatchedCalls

_SQUEEZES = (torch.squeeze, Tensor.squeeze, Tensor.squeeze_)


def _is_unnamed_squeeze(function: object, arguments: Sequence[object], named: Mapping[str, object]) -> bool:
    """Tells whether a call squeezes a first dimension of 1 without naming it."""
    given = [*arguments, *named.values()]
    if function not in _SQUEEZES or len(given) != 1 or "dim" in named:
        return False
    of = given[0]
    return isinstance(of, Tensor) and of.ndim > 0 and of.shape[0] == 1


def squeezes_samples(run: Callable[[], object]) -> bool:
    """Runs code that has failed once more; tells whether it squeezes the first dimension of a batch of one."""
    seen = WatchedCalls(_is_unnamed_squeeze)
    with seen, suppress(Exception):  # it fails again
        run()
    return seen.found
