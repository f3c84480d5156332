"""Parts of a loss whose backward pass is the user's own: functions of `torch.autograd.Function`, and hooks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ifloo.objective.function_calls import WatchedCalls

TENSOR_HOOK, MODULE_HOOK = "a tensor hook", "a backward hook of a module"
_OF_TORCH = frozenset({"CheckpointFunction"})  # exact, whatever is within

STOPPED = (
    "a part of the loss passes no gradient (detach, torch.no_grad, a rounding): scores follow the gradient that "
    "training took, and the curvature is that of the part that moves; the fit ended at no minimum of the loss itself"
)
OWN_BACKWARD = (
    "the backward pass of this loss is not the derivative of its value ({}: a backward pass of its own): scores follow "
    "the gradient that training took; the fit ended at no minimum of the loss itself"
)


def own_backward(run: Callable[[], Tensor]) -> tuple[str, ...]:
    """Returns what has a backward pass of its own in a recorded loss, as noun phrases; empty if nothing has."""
    with WatchedCalls(lambda function, *_: function is Tensor.register_hook) as hooks:
        loss = run()
    names = sorted({_name(node) for node in _nodes(loss.grad_fn) if isinstance(node, torch._C._FunctionBase)})
    found = [name for name in names if name not in _OF_TORCH]
    phrases = [MODULE_HOOK if name == "BackwardHookFunction" else name for name in found]
    return (*phrases, *([TENSOR_HOOK] if hooks.found else []))


def _name(node: object) -> str:
    return type(node).__name__.removesuffix("Backward")


def _nodes(root: torch.autograd.graph.Node | None) -> list[torch.autograd.graph.Node]:
    seen = {} if root is None else {id(root): root}
    waiting = list(seen.values())
    while waiting:
        for parent, _ in waiting.pop().next_functions:
            if parent is not None and id(parent) not in seen:
                seen[id(parent)] = parent
                waiting.append(parent)
    return list(seen.values())
