"""Hooks on the gradients of weights, which a copy of a module loses."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

Hooks = Mapping[str, tuple[Callable[[Tensor], Tensor | None], ...]]


@dataclass(frozen=True)
class GradientHooks:
    """Hooks by the name of the weight.

    Attributes:
        on_gradient: Hooks of `register_hook`, which receive a gradient and may replace it.
        on_weight: Hooks of `register_post_accumulate_grad_hook`, which receive the weight.
    """

    on_gradient: Hooks
    on_weight: Hooks

    @classmethod
    def of(cls, module: nn.Module) -> GradientHooks:
        """Reads the hooks of a module's weights."""
        named = dict(module.named_parameters())
        before = {name: tuple((p._backward_hooks or {}).values()) for name, p in named.items()}
        after = {name: tuple((p._post_accumulate_grad_hooks or {}).values()) for name, p in named.items()}
        return cls(_without_empty(before), _without_empty(after))

    def __bool__(self) -> bool:
        return bool(self.on_gradient or self.on_weight)

    def taken_from(self, module: nn.Module) -> GradientHooks:
        """Returns these hooks with those that a copy of the module has registered, which are removed from it.

        A weight that has hooks already keeps them alone: the copy registers the same ones again.
        """
        own = GradientHooks.of(module)
        for p in module.parameters():
            for registered in (p._backward_hooks, p._post_accumulate_grad_hooks):
                if registered:
                    registered.clear()
        return GradientHooks({**own.on_gradient, **self.on_gradient}, {**own.on_weight, **self.on_weight})

    @contextmanager
    def registered(self, module: nn.Module) -> Generator[None, None, None]:
        """Registers the hooks on the weights of a module until exit."""
        with ExitStack() as stack:
            for name, p in module.named_parameters():
                for hook in self.on_gradient.get(name, ()):
                    stack.callback(p.register_hook(hook).remove)
                for hook in self.on_weight.get(name, ()):
                    stack.callback(p.register_post_accumulate_grad_hook(hook).remove)
            yield


def _without_empty(hooks: Hooks) -> Hooks:
    return {name: found for name, found in hooks.items() if found}
