"""Precision of the arithmetic within a step, which may be coarser than that of the weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class CoarsestFloat(TorchDispatchMode):
    """Context that records the coarsest floating-point results: those of Hugging Face losses and of metrics, say.

    Attributes:
        eps: Largest distance from 1 to the next number among their types; 0 before any result.
    """

    eps: float = 0.0

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, Tensor) and x.is_floating_point():
                self.eps = max(self.eps, torch.finfo(x.dtype).eps)
        return out
