"""Weight decay of optimizers: coupled (part of the gradient, equal to a penalty) or decoupled (part of the step)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import optim

# Optimizers whose decay adds λθ to the gradient, as the penalty ½λ‖θ‖² does, unless a group decouples it.
COUPLED = (optim.SGD, optim.Adam, optim.Adagrad, optim.RMSprop, optim.NAdam)
# Optimizers whose decay always shrinks the weights directly; not every version of torch has all of them.
ALWAYS_DECOUPLED = tuple(getattr(optim, name) for name in ("AdamW", "Adafactor", "Muon") if hasattr(optim, name))


def decoupled(optimizer: optim.Optimizer, group: Mapping[str, Any]) -> bool:
    """Returns whether the decay of a parameter group is part of the step, not of J (Loshchilov & Hutter 2019).

    Args:
        optimizer: An optimizer of torch, or of a derived class.
        group: Parameter group of the optimizer.
    """
    return isinstance(optimizer, ALWAYS_DECOUPLED) or bool(group.get("decoupled_weight_decay"))
