"""Functions of torch whose second derivative is missing, wrong or rounded, computed by functions that have it exactly."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps

import torch
import torch.utils.checkpoint
from torch import Tensor
from torch.nn import functional as F


@contextmanager
def exact_kernels() -> Generator[None, None, None]:
    """Replaces these functions until exit; their values and gradients are the same up to rounding.

    - `torch._weight_norm`, which weight normalisation calls: its double backward lacks mixed derivatives in direction
      and length, and it has no derivative in forward mode.
    - `F.binary_cross_entropy_with_logits` of targets in fewer bits than the logits, such as `y.float()` in a module of
      64 bits: under transforms its second derivative is rounded to the bits of the targets.
    - Activation checkpoints: a checkpointed function is run a second time in the backward pass, outside of the
      functional call that gives it its parameters. Here it is run once, and its activations are kept.
    """
    with ExitStack() as stack:
        for namespace, name, function in _replacements():
            stack.enter_context(_exchanged(namespace, name, function))
        yield


def _replacements() -> Iterator[tuple[object, str, object]]:
    yield torch, "_weight_norm", _weight_norm
    # This module binds the function to a name of its own, and a function of the same name hides the module.
    yield importlib.import_module("torch.nn.utils.weight_norm"), "_weight_norm", _weight_norm
    yield F, "binary_cross_entropy_with_logits", _in_one_dtype(F.binary_cross_entropy_with_logits)
    yield torch.utils.checkpoint, "CheckpointFunction", _Kept
    yield torch.utils.checkpoint, "_checkpoint_without_reentrant_generator", _kept


@contextmanager
def _exchanged(namespace: object, name: str, function: object) -> Generator[None, None, None]:
    """Exchanges a name of a module until exit; nothing if this version of torch does not have it."""
    names = vars(namespace)
    if name not in names:
        yield
        return
    before = names[name]
    names[name] = function
    try:
        yield
    finally:
        names[name] = before


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    return v * (g / torch.norm_except_dim(v, 2, dim))


def _in_one_dtype(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Lets a loss of (input, target, ...) take its target in the dtype of the input if that has more bits."""

    @wraps(loss)
    def of(input: Tensor, target: Tensor, *args: object, **kwargs: object) -> Tensor:
        wider = torch.promote_types(input.dtype, target.dtype)
        return loss(input, target.to(wider) if wider is input.dtype else target, *args, **kwargs)

    return of


class _Kept:
    """Stands for the function of torch that drops activations: it keeps them."""

    @staticmethod
    def apply(function: Callable[..., object], preserve: bool, *args: object) -> object:
        return function(*args)


def _kept(*_: object, **__: object) -> Generator[None, None, None]:
    """Stands for the steps of torch before and after a function whose activations it drops."""
    yield
