"""A module's losses as functions of a flat parameter vector, fit for torch.func transforms."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from ifloo.objective.batches import Batch, as_made, map_tensors
from ifloo.objective.protocol import OutputLosses
from ifloo.params import ParamSpace


@contextmanager
def differentiable_kernels() -> Generator[None, None, None]:
    """Kernels that torch.func can differentiate twice and forward: fused attention can neither. Restores the state."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def scoring(module: nn.Module) -> Generator[None, None, None]:
    """Evaluation mode, no logging from inside a transform, differentiable kernels; all restored on leaving."""
    was_training = {m: m.training for m in module.modules()}
    module.eval()
    try:
        with differentiable_kernels(), silenced(module):
            yield
    finally:
        for m, training in was_training.items():
            m.training = training


@contextmanager
def silenced(module: nn.Module) -> Generator[None, None, None]:
    """No logging by the module or by those in it: `self.log` fails inside a transform. Restored on leaving."""
    said = [(m, name) for m in module.modules() for name in ("log", "log_dict") if callable(getattr(m, name, None))]
    before = {(m, name): m.__dict__.get(name) for m, name in said}
    for m, name in before:
        m.__dict__[name] = _no_log
    try:
        yield
    finally:
        for (m, name), own in before.items():
            m.__dict__.pop(name)
            if own is not None:
                m.__dict__[name] = own


def _no_log(*_: Any, **__: Any) -> None:
    """Stands in for `self.log`, which fails inside a transform on a module attached to a Trainer."""


class _Method(nn.Module):
    """Makes a method of `module` the forward pass, which is all that functional_call can run."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, method: str, *args: Any) -> Tensor:
        return getattr(self.module, method)(*args)


class FunctionalLosses:
    """ℓ and R of a module as functions of θ `[p]`; parameters outside `space` stay at the module's values."""

    def __init__(self, module: nn.Module, space: ParamSpace) -> None:
        """Binds a module; its parameters are not touched, neither here nor by a call."""
        self.module, self.space = module, space
        self._caller = _Method(module)

    def theta(self) -> Float[Tensor, " p"]:
        """The module's present values, a detached copy."""
        return self.space.values_of(self.module)

    def sample_losses(self, theta: Float[Tensor, " p"], batch: Batch) -> Tensor:
        """ℓ of each sample, `[b]`; whether the model keeps to that shape is for `preflight` to say."""
        return self._call(theta, "sample_losses", as_made(batch))

    def loss_alone(self, theta: Float[Tensor, " p"], sample: Batch) -> Float[Tensor, ""]:
        """ℓ of one sample, its tensors without their first dimension, as vmap deals them out."""
        return self.sample_losses(theta, map_tensors(lambda x: x.unsqueeze(0), sample)).squeeze(0)

    def step_loss(self, theta: Float[Tensor, " p"], batch: Batch) -> Float[Tensor, ""]:
        """What the training step of an adapted module makes of a whole batch."""
        return self._call(theta, "step_loss", as_made(batch))

    def penalty(self, theta: Float[Tensor, " p"]) -> Float[Tensor, ""]:
        return self._call(theta, "penalty")

    def outputs(self, theta: Float[Tensor, " p"], batch: Batch) -> Float[Tensor, "b ..."]:
        return self._call(theta, "outputs", as_made(batch))

    def output_losses(self, outputs: Float[Tensor, "b ..."], batch: Batch) -> Float[Tensor, " b"]:
        return cast(OutputLosses, self.module).output_losses(outputs, as_made(batch))

    def _call(self, theta: Tensor, method: str, *args: Any) -> Tensor:
        # The others are constants: attached, each result would drag a graph through them.
        values = {n: p.detach() for n, p in self.module.named_parameters()} | self.space.unflatten(theta)
        return functional_call(self._caller, {f"module.{n}": v for n, v in values.items()}, (method, *args))
