"""Parameters that a fit trained: those that an optimizer moves, as configured and as the checkpoint records it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.optim import Optimizer

from ifloo.models.run_state import RunState
from ifloo.objective.certificate import Cause


def trained_parameters(module: nn.Module, optimizers: Sequence[Optimizer]) -> tuple[str, ...] | None:
    """Returns the names of the parameters that an optimizer moves; None if the optimizers are not known.

    A frozen parameter is not moved, nor is one of a group whose learning rate is 0 while that of another is not.
    """
    if not optimizers:
        return None
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    moving = [group for group in groups if group.get("initial_lr", group.get("lr")) != 0]
    moved = {id(p) for group in moving or groups for p in group["params"] if p.requires_grad}
    return tuple(name for name, p in module.named_parameters() if id(p) in moved)


def of_fewer_parameters(names: Sequence[str], state: RunState) -> Cause | None:
    """Returns the cause of a difference where the optimizers of the checkpoint hold fewer parameters than are given.

    Args:
        names: Names of the attributed parameters that `configure_optimizers` gives to an optimizer.
        state: State of the run, with that of its optimizers.
    """
    saved = sum(len(group.get("params", ())) for one in state.optimizers for group in one.get("param_groups", ()))
    if not 0 < saved < len(names):
        return None
    return Cause(
        f"parameters that the fit did not train (its optimizers had {saved}, configure_optimizers now gives "
        f"{len(names)})",
        "something of the fit froze the others, such as BackboneFinetuning: give --attribution.parameters of those "
        "that were trained, or freeze the others in __init__ (requires_grad_(False)).",
    )
