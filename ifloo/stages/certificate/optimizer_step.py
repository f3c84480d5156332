"""Gradients that a module's own `optimizer_step` gives to the optimizer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import lightning as L
import torch
from torch import Tensor
from torch.optim import Optimizer

log = logging.getLogger(__name__)


def stepped_gradients(
    module: L.LightningModule, optimizer: Optimizer, loss: Tensor, again: Callable[[], Tensor]
) -> dict[int, Tensor]:
    """Runs the module's `optimizer_step` without any change of a weight by the optimizer.

    Args:
        module: Module that defines the hook; the gradients of its loss are there.
        optimizer: Optimizer that the Trainer would give it.
        loss: Loss of the step, which the closure of the optimizer returns at its first call.
        again: Function that takes the gradients of the step again, at the weights as they are, and returns its loss. It
            answers later calls of the closure, as of a hook that moves the weights in between.

    Returns:
        Gradients at the first step of the optimizer, by identity of the parameter. If it takes no step, those there.
    """
    present = {id(p): p.grad for p in module.parameters() if p.grad is not None}
    weights = [p.detach().clone() for p in module.parameters()]
    found: list[dict[int, Tensor]] = []
    calls = 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        there = all(p.grad is present.get(id(p)) for p in module.parameters())  # not set to none before the call
        return loss if calls == 1 and there and _same(module, weights) else again()

    def step(closure: Callable[[], Tensor] | None = None, **_: object) -> Tensor:
        value = closure() if closure is not None else loss  # a hook may leave the call of the closure to the optimizer
        held = (p for group in optimizer.param_groups for p in group["params"] if p.grad is not None)
        found.append({id(p): p.grad.detach().clone() for p in held})
        return value

    optimizer.step = step  # type: ignore[method-assign,assignment]  # until the end of the call
    try:
        module.optimizer_step(module.current_epoch, 0, optimizer, closure)
    except Exception as error:  # a hook may need what only a fit has
        log.info("optimizer_step is not part of the replayed training step: %s", error)
    finally:
        del optimizer.step
        with torch.no_grad():
            for p, before in zip(module.parameters(), weights, strict=True):
                p.copy_(before)
    return found[0] if found else present


def _same(module: L.LightningModule, weights: Sequence[Tensor]) -> bool:
    return all(torch.equal(p, before) for p, before in zip(module.parameters(), weights, strict=True))
