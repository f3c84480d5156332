"""Gradients of a training step that optimizes by hand: those that each optimizer has at its first step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext

import lightning as L
from lightning.pytorch.plugins.precision import Precision
from torch import Tensor
from torch.optim import Optimizer

ACCUMULATED = 64  # largest number of runs of a step that accumulates gradients


def manual_gradients(
    module: L.LightningModule, optimizers: Sequence[Optimizer], precision: Precision, run: Callable[[int], object]
) -> dict[int, Tensor]:
    """Runs the step without any change of a weight; returns the gradients by identity of the parameter.

    Args:
        module: Module with `automatic_optimization = False`.
        optimizers: Its optimizers.
        precision: Lightning's plugin for the precision of the fit.
        run: Function that runs `training_step` with an index of its batch. A step that accumulates gradients is run
            with the following indices until an optimizer takes a step.
    """
    found: dict[int, Tensor] = {}

    def backward(loss: Tensor, *args: object, **kwargs: object) -> None:
        module.on_before_backward(loss)
        module.backward(loss, *args, **kwargs)
        module.on_after_backward()

    def stepping(optimizer: Optimizer) -> Callable[..., object]:
        def step(closure: Callable[[], object] | None = None, **kwargs: object) -> object:
            result = closure() if closure is not None else None
            module.on_before_optimizer_step(optimizer)
            for p in (p for group in optimizer.param_groups for p in group["params"] if p.grad is not None):
                found.setdefault(id(p), p.grad.detach().clone())
            return result

        return step

    replaced: dict[str, object] = {
        "manual_backward": backward,
        "optimizers": lambda use_pl_optimizer=True: optimizers[0] if len(optimizers) == 1 else list(optimizers),
        "toggle_optimizer": lambda optimizer: None,
        "untoggle_optimizer": lambda optimizer: None,
        "toggled_optimizer": lambda optimizer: nullcontext(),
    }
    with ExitStack() as stack:
        for name, function in replaced.items():
            setattr(module, name, function)
            stack.callback(delattr, module, name)
        for optimizer in optimizers:
            optimizer.step = stepping(optimizer)  # type: ignore[method-assign,assignment]  # until exit
            stack.callback(delattr, optimizer, "step")
        stack.enter_context(precision.train_step_context())
        for index in range(ACCUMULATED):
            run(index)
            if found:
                break
    return found
