"""Difference between the tensors of a checkpoint and those of a module."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.parameter import is_lazy


def state_difference(module: nn.Module, stored: Mapping[str, Tensor], strict: bool) -> str | None:
    """Describes how stored tensors differ from those of a module; None where they can be loaded.

    A module that is not loaded strictly may keep what it makes itself and does not train: frozen parameters and
    buffers. Parameters without a shape (lazy layers) take that of the stored ones.

    Args:
        module: Module to load the tensors into.
        stored: Tensors by name.
        strict: Whether every name must be on both sides.
    """
    own = module.state_dict(keep_vars=True)
    missing, extra = sorted(own.keys() - stored.keys()), sorted(stored.keys() - own.keys())
    if not strict:
        missing, extra = [name for name in missing if own[name].requires_grad], []
    lines = []
    if missing:
        trained = "" if strict else " (trained; only what is frozen may be left out)"
        lines.append(f"  The model has, the checkpoint has not: {missing[:5]}{trained}")
    if extra:
        lines.append(f"  The checkpoint has, the model has not: {extra[:5]}")
    shapes = [
        f"{name} {list(stored[name].shape)} instead of {list(tensor.shape)}"
        for name, tensor in own.items()
        if name in stored and not is_lazy(tensor) and stored[name].shape != tensor.shape
    ]
    if shapes:
        lines.append(f"  Shapes: {'; '.join(shapes[:5])}")
    return "\n".join(lines) or None
