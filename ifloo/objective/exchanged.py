"""Calls of a module with other tensors in place of its parameters, which leave the module as it was."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.func import functional_call


def call_exchanged(module: nn.Module, values: Mapping[str, Tensor], arguments: tuple[object, ...]) -> Tensor:
    """Calls a module that returns a tensor, with tensors in place of parameters and buffers and of all tied to these.

    Args:
        module: Module.
        values: Tensors by the names of `named_parameters` and `named_buffers`.
        arguments: Arguments of its forward pass.
    """
    result: Tensor = functional_call(module, once_each(module, values), arguments, tie_weights=False)
    return result


def once_each(module: nn.Module, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns tensors for `functional_call` with `tie_weights=False`, which leave the module as it was.

    By itself it exchanges the tensors of a layer that is registered under two names twice, and then leaves the second
    exchange in place; here each layer is exchanged once, and what is tied to an exchanged tensor too.

    Args:
        module: Module.
        values: Tensors by the names of `named_parameters` and `named_buffers`.
    """
    given = {
        id(tensor): values[name]
        for name, tensor in (*module.named_parameters(), *module.named_buffers())
        if name in values
    }
    return {
        f"{prefix}.{key}" if prefix else key: given[id(tensor)]
        for prefix, layer in module.named_modules()
        for key, tensor in (*layer._parameters.items(), *layer._buffers.items())
        if tensor is not None and id(tensor) in given
    }
