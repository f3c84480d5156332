"""Functions of torch whose derivatives are wrong or imprecise, computed by others that have the exact ones."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import wraps

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils import checkpoint

_NORM, _LOGITS = "_weight_norm", "binary_cross_entropy_with_logits"


@contextmanager
def exact_kernels() -> Generator[None, None, None]:
    """Replaces these functions until exit; their values are the same up to rounding.

    - `torch._weight_norm`, which weight normalisation calls: its double backward lacks mixed derivatives in direction
      and length, and it has no derivative in forward mode.
    - `F.binary_cross_entropy_with_logits` of targets in fewer bits than the logits, such as `y.float()` in a module of
      64 bits: a plain pass rounds the loss to the bits of the targets, a transform does not.
    - Activation checkpointing: it runs layers again in the backward pass, when parameters that a functional call has
      exchanged are no longer in place. Here activations are stored.
    """
    places: list[tuple[dict[str, object], str, object]] = [
        (vars(torch), _NORM, _weight_norm),
        (vars(F), _LOGITS, _in_one_dtype(F.binary_cross_entropy_with_logits)),
        (vars(checkpoint), "CheckpointFunction", _Stored),
        (vars(checkpoint), "_checkpoint_without_reentrant_generator", _stored),
    ]
    if (older := sys.modules.get("torch.nn.utils.weight_norm")) is not None:  # it binds the function to its own name
        places.append((vars(older), _NORM, _weight_norm))
    places = [place for place in places if place[1] in place[0]]  # some names are private, and may differ elsewhere
    before = [(names, name, names[name]) for names, name, _ in places]
    try:
        for names, name, function in places:
            names[name] = function
        yield
    finally:
        for names, name, function in before:
            names[name] = function


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    return v * (g / torch.norm_except_dim(v, 2, dim))


def _in_one_dtype(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Lets a loss of (input, target, ...) take its target in the dtype of the input if that has more bits."""

    @wraps(loss)
    def of(input: Tensor, target: Tensor, *args: object, **kwargs: object) -> Tensor:
        wider = torch.promote_types(input.dtype, target.dtype)
        return loss(input, target.to(wider) if wider is input.dtype else target, *args, **kwargs)

    return of


class _Stored:
    """A function in place of the one by which reentrant checkpointing runs layers."""

    @staticmethod
    def apply(function: Callable[..., object], preserve_rng_state: bool, *args: object) -> object:
        return function(*args)


def _stored(*_: object, **__: object) -> Generator[None, None, None]:
    """Does nothing before and after the pass of checkpointed layers."""
    yield
