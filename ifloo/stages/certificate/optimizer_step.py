"""Gradients that a module's own `optimizer_step` gives to the optimizer."""

from __future__ import annotations

import logging

import lightning as L
from torch import Tensor
from torch.optim import Optimizer

log = logging.getLogger(__name__)


def stepped_gradients(module: L.LightningModule, optimizer: Optimizer, loss: Tensor) -> dict[int, Tensor]:
    """Runs the module's `optimizer_step` without any change of a weight by the optimizer.

    Args:
        module: Module that defines the hook; the gradients of its loss are there.
        optimizer: Optimizer that the Trainer would give it.
        loss: Loss of the step, which the closure of the optimizer returns.

    Returns:
        Gradients at the first step of the optimizer, by identity of the parameter. If it takes no step, those there.
    """
    present = {id(p): p.grad for p in module.parameters() if p.grad is not None}
    found: list[dict[int, Tensor]] = []

    def step(closure: object = None, **_: object) -> Tensor:
        held = (p for group in optimizer.param_groups for p in group["params"] if p.grad is not None)
        found.append({id(p): p.grad.detach().clone() for p in held})
        return loss

    optimizer.step = step  # type: ignore[method-assign,assignment]  # until the end of the call
    try:
        module.optimizer_step(module.current_epoch, 0, optimizer, lambda: loss)
    except Exception as error:  # a hook may need what only a fit has
        log.info("optimizer_step is not part of the replayed training step: %s", error)
    finally:
        del optimizer.step
    return found[0] if found else present
