"""Whether code takes the dimension of the samples from a batch of one, by a squeeze() that names no dimension."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_SQUEEZES = (torch.squeeze, Tensor.squeeze, Tensor.squeeze_)


class _Squeezes(TorchFunctionMode):
    """Notes whether code squeezes a first dimension of 1 without naming it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: bool = False

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        given, named = [*args, *(kwargs or {}).values()], kwargs or {}
        if func in _SQUEEZES and len(given) == 1 and "dim" not in named:
            of = given[0]
            self.found = self.found or (isinstance(of, Tensor) and of.ndim > 0 and of.shape[0] == 1)
        return func(*args, **named)


def squeezes_samples(run: Callable[[], object]) -> bool:
    """Runs code that has failed once more; tells whether it squeezes the first dimension of a batch of one."""
    seen = _Squeezes()
    with seen, suppress(Exception):  # it fails again
        run()
    return seen.found
