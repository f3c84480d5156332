"""Operations of torch that have no second derivative, or a wrong one: replaced where they can be, else named."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager

import torch
import torch.utils.checkpoint
from torch import Tensor

from ifloo.errors import InputError
from ifloo.objective.torch_texts import meaning_of


@contextmanager
def twice_differentiated() -> Generator[None, None, None]:
    """Names an operation without second derivative that a product with a Hessian meets.

    Raises:
        InputError: torch lacks the derivative.
        RuntimeError: Anything else failed.
    """
    try:
        yield
    except RuntimeError as error:  # NotImplementedError is one
        if not _LACKING.search(str(error)):
            raise
        raise InputError(
            f"The loss has no second derivative: {meaning_of(str(error))}.\n"
            "  Write that operation by others that have one, or take a method that needs none: "
            "--attribution.method ifloo.attribution.GradientDot."
        ) from error


_LACKING = re.compile(r"derivative for .* is not implemented")


@contextmanager
def whole_derivatives() -> Generator[None, None, None]:
    """Computes weight normalisation and activation checkpoints by operations with all derivatives, until exit.

    The second derivative of torch's fused weight normalisation takes the norms for constants. A checkpointed function
    is run a second time in the backward pass, outside of the functional call that gives it its parameters.
    """
    with ExitStack() as stack:
        for namespace, name, function in _replacements():
            stack.enter_context(_exchanged(namespace, name, function))
        yield


def _replacements() -> Iterator[tuple[object, str, object]]:
    yield torch, "_weight_norm", _weight_norm
    # A function of the same name hides this module.
    yield importlib.import_module("torch.nn.utils.weight_norm"), "_weight_norm", _weight_norm
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


class _Kept:
    """Stands for the function of torch that drops activations: it keeps them."""

    @staticmethod
    def apply(function: Callable[..., object], preserve: bool, *args: object) -> object:
        return function(*args)


def _kept(*_: object, **__: object) -> Generator[None, None, None]:
    """Stands for the steps of torch before and after a function whose activations it drops."""
    yield
