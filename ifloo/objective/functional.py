"""The losses of a module as functions of a flat parameter vector, for use in torch.func transforms."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from ifloo.errors import InputError
from ifloo.objective.batches import Batch, map_tensors, without_ids
from ifloo.objective.protocol import OutputLosses, contract_of, states_outputs
from ifloo.objective.silence import logging_to, silenced
from ifloo.params import ParamSpace

__all__ = ["FunctionalLosses", "differentiable_kernels", "logging_to", "scoring", "silenced"]


@contextmanager
def differentiable_kernels() -> Generator[None, None, None]:
    """Selects kernels that allow second and forward-mode derivatives, which fused attention does not, until exit."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def dense_embeddings(module: nn.Module) -> Generator[None, None, None]:
    """Lets embedding layers have dense gradients until exit: sparse ones have the same values, but few operations."""
    sparse = [m for m in module.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag)) and m.sparse]
    for layer in sparse:
        layer.sparse = False
    try:
        yield
    finally:
        for layer in sparse:
            layer.sparse = True


@contextmanager
def scoring(module: nn.Module) -> Generator[None, None, None]:
    """Sets evaluation mode, turns logging and sparse gradients off and selects differentiable kernels, until exit."""
    was_training = {m: m.training for m in module.modules()}
    module.eval()
    try:
        with differentiable_kernels(), dense_embeddings(module), silenced(module):
            yield
    finally:
        for m, training in was_training.items():
            m.training = training


class _Caller(nn.Module):
    """A module whose forward pass calls any function: functional_call can run nothing but a forward pass."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, function: Callable[..., Tensor], *args: object) -> Tensor:
        return function(*args)


class FunctionalLosses:
    """ℓ and R of a module as functions of θ `[p]`; parameters outside `space` keep the module's values.

    Attributes:
        module: Model that states the losses.
        contract: Contract of the model, with defaults for the members that it does not define.
        space: Parameters that θ consists of.
    """

    def __init__(self, module: nn.Module, space: ParamSpace) -> None:
        """Binds a module; its parameters are never changed, neither here nor by a call.

        Raises:
            InputError: The module has no `sample_losses` or no `penalty`.
        """
        self.module, self.space, self.contract = module, space, contract_of(module)
        self._caller = _Caller(module)

    def theta(self) -> Float[Tensor, " p"]:
        """Returns the module's current values as a detached copy."""
        return self.space.values_of(self.module)

    def sample_losses(self, theta: Float[Tensor, " p"], batch: Batch) -> Tensor:
        """Returns ℓ of each sample, `[b]`; the shape is that of the model's own result, which `preflight` checks."""
        return self._call(theta, self.contract.sample_losses, without_ids(batch))

    def loss_alone(self, theta: Float[Tensor, " p"], sample: Batch) -> Float[Tensor, ""]:
        """Returns ℓ of one sample, whose tensors lack the first dimension, as within vmap."""
        return self.sample_losses(theta, map_tensors(lambda x: x.unsqueeze(0), sample)).squeeze(0)

    def step_loss(self, theta: Float[Tensor, " p"], batch: Batch) -> Float[Tensor, ""]:
        """Returns the loss of a training step on a whole batch; see `ModelContract.step_loss`."""
        return self._call(theta, self.contract.step_loss, without_ids(batch))

    def penalty(self, theta: Float[Tensor, " p"]) -> Float[Tensor, ""]:
        """Returns R(θ), nats."""
        return self._call(theta, self.contract.penalty)

    @property
    def of_outputs(self) -> OutputLosses:
        """The module, typed as one that separates its outputs from their losses.

        Raises:
            InputError: The module does not define `outputs` and `output_losses`.
        """
        if states_outputs(self.module):
            return self.module
        raise InputError(
            f"Outputs are needed apart from the losses; {type(self.module).__name__} defines no `outputs(batch)` and "
            "`output_losses(outputs, batch)`.\n  Define both."
        )

    def outputs(self, theta: Float[Tensor, " p"], batch: Batch) -> Float[Tensor, "b ..."]:
        """Returns the outputs z; raises the errors of `of_outputs`."""
        return self._call(theta, self.of_outputs.outputs, without_ids(batch))

    def output_losses(self, outputs: Float[Tensor, "b ..."], batch: Batch) -> Float[Tensor, " b"]:
        """Returns ℓ of each sample from its outputs; raises the errors of `of_outputs`."""
        return self.of_outputs.output_losses(outputs, without_ids(batch))

    def _call(self, theta: Tensor, function: Callable[..., Tensor], *args: object) -> Tensor:
        # Parameters outside θ are constants: unless detached, they would add a graph to each result.
        values = {n: p.detach() for n, p in self.module.named_parameters()} | self.space.unflatten(theta)
        result: Tensor = functional_call(self._caller, {f"module.{n}": v for n, v in values.items()}, (function, *args))
        return result
