"""Weight decay of an optimizer: inside the gradient, where a penalty says the same, or beside it, where none does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import optim

# Whose decay adds λθ to the gradient, which is what the penalty ½λ‖θ‖² does, unless their groups decouple it.
COUPLED = (optim.SGD, optim.Adam, optim.Adagrad, optim.RMSprop, optim.NAdam)
# Who shrink weights beside the gradient whatever is said; not every version of torch has all of them.
ALWAYS_DECOUPLED = tuple(getattr(optim, name) for name in ("AdamW", "Adafactor", "Muon") if hasattr(optim, name))


def decoupled(optimizer: optim.Optimizer, group: Mapping[str, Any]) -> bool:
    """Whether a decay of these parameters is part of the step and of no objective (Loshchilov & Hutter 2019).

    Args:
        optimizer: of torch, or of a class derived from one of its.
        group: of its parameters.
    """
    return isinstance(optimizer, ALWAYS_DECOUPLED) or bool(group.get("decoupled_weight_decay"))
