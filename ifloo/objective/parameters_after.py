"""Parameters that act on the output of a layer, found by measuring and not by the kinds of operations after it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from ifloo.objective.forms import Batch, map_tensors
from ifloo.objective.out_of_memory import is_out_of_memory

log = logging.getLogger(__name__)
POINTS = 3  # outputs at which the gradient is compared, beside the layer's own: a loss may be linear between kinks
SEED = 0


def parameters_after(
    module: nn.Module,
    layer: str,
    fixed: Sequence[str],
    candidates: Mapping[str, Tensor],
    loss: Callable[[], Tensor],
) -> list[str]:
    """Returns the names of the candidates that act on the output z of a layer.

    A parameter φ acts on z if ∂ℓ/∂z depends on φ while z, and the output of every other layer, stay as they are. What
    φ adds to the loss by itself, as a penalty does, changes no ∂ℓ/∂z. One at whose other values the loss fails acts.

    Args:
        module: Module; the values of its parameters are on exit as before.
        layer: Name of the layer.
        fixed: Names of all layers, whose outputs are held.
        candidates: Parameters by name.
        loss: Function that runs one sample and returns its loss.
    """
    held = _Outputs(module, layer, fixed)
    with held.recorded():
        loss()
    before = held.gradients(loss)

    def act(names: Sequence[str]) -> bool:
        for change in (_stretched_with_zeros, _stretched):
            with _moved([candidates[name] for name in names], change):
                after = held.gradients(loss)
            if all(one is None or other is not None for one, other in zip(before, after, strict=True)):
                break  # the user's code runs there: a scale is still positive, a matrix triangular
        return not all(one is None or _same(one, other) for one, other in zip(before, after, strict=True))

    names = sorted(candidates)
    return [name for name in names if act([name])] or names if act(names) else []


class _Outputs:
    """Outputs of layers in one pass, which later passes get in place of what the layers compute."""

    def __init__(self, module: nn.Module, layer: str, fixed: Sequence[str]) -> None:
        modules = dict(module.named_modules())
        self._layers, self._layer = {name: modules[name] for name in fixed}, layer
        self._given: dict[str, list[Batch]] = {name: [] for name in fixed}

    @contextmanager
    def recorded(self) -> Generator[None, None, None]:
        """Records the outputs of all layers until exit."""

        def record(name: str, out: Batch) -> None:
            self._given[name].append(map_tensors(lambda x: x.detach(), out))

        with self._hooked(record):
            yield

    def gradients(self, loss: Callable[[], Tensor]) -> list[Tensor | None]:
        """Returns ∂ℓ/∂z at the layer's own output and at drawn ones, with the outputs of all other layers held.

        It is None where the loss has no value, or none that is a number.
        """
        return [self._gradient_if_any(loss, point) for point in range(1 + POINTS)]

    def _gradient_if_any(self, loss: Callable[[], Tensor], point: int) -> Tensor | None:
        try:
            found = self._gradient(loss, point)
        except Exception as error:  # outputs and weights may have a domain, such as the scale of a distribution
            if is_out_of_memory(error):
                raise
            log.info("the loss is not compared where it fails: %s", error)
            return None
        return found if bool(torch.isfinite(found).all()) else None

    def _gradient(self, loss: Callable[[], Tensor], point: int) -> Tensor:
        own = [z for out in self._given[self._layer] for z in (out,) if isinstance(z, Tensor)]
        moved = [(_shifted(z, point) if point else z.clone()).requires_grad_() for z in own]
        left = {name: iter(outs) for name, outs in self._given.items()} | {self._layer: iter(moved)}
        with self._hooked(lambda name, _: next(left[name])):
            value = loss()
        slopes = torch.autograd.grad(value, moved, allow_unused=True, materialize_grads=True)
        return torch.cat([slope.reshape(-1) for slope in slopes])

    @contextmanager
    def _hooked(self, answer: Callable[[str, Batch], object]) -> Generator[None, None, None]:
        """Calls `answer` with the name and output of each layer; what it returns takes the place of the output."""

        def hook_of(name: str) -> Callable[[nn.Module, object, Batch], object]:
            return lambda _layer, _given, out: answer(name, out)

        with ExitStack() as stack:
            for name, layer in self._layers.items():
                stack.callback(layer.register_forward_hook(hook_of(name)).remove)
            yield


def _shifted(x: Tensor, point: int) -> Tensor:
    """Returns a tensor moved at random by about its own spread."""
    draw = torch.Generator().manual_seed(SEED + point)
    noise = torch.randn(x.shape, generator=draw, dtype=torch.float64).to(x)
    spread = x.std() if x.numel() > 1 else x.abs().mean()
    return x + (spread + 0.1 * x.abs().mean() + torch.finfo(x.dtype).tiny) * noise


def _stretched(p: Tensor, draw: torch.Generator) -> Tensor:
    """Returns a parameter whose entries are moved by up to a tenth, so that signs and zeros stay."""
    return p * (1 + 0.1 * torch.rand(p.shape, generator=draw, dtype=torch.float64).to(p))


def _stretched_with_zeros(p: Tensor, draw: torch.Generator) -> Tensor:
    noise = torch.randn(p.shape, generator=draw, dtype=torch.float64).to(p)
    return torch.where(p == 0, 0.1 * noise, _stretched(p, draw))


@contextmanager
def _moved(
    parameters: Sequence[Tensor], change: Callable[[Tensor, torch.Generator], Tensor]
) -> Generator[None, None, None]:
    """Moves parameters at random until exit."""
    before = [p.detach().clone() for p in parameters]
    draw = torch.Generator().manual_seed(SEED + 1 + POINTS)
    try:
        with torch.no_grad():
            for p in parameters:
                p.copy_(change(p, draw))
        yield
    finally:
        with torch.no_grad():
            for p, value in zip(parameters, before, strict=True):
                p.copy_(value)


def _same(one: Tensor, other: Tensor | None) -> bool:
    if other is None:
        return False
    return bool(((one - other).abs() <= 1e3 * torch.finfo(one.dtype).eps * one.abs().max()).all())
