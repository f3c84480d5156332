"""The losses of a module as functions of a flat parameter vector, for use in torch.func transforms."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TypeGuard

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from ifloo.errors import InputError
from ifloo.objective.batches import Batch, Drawn, map_tensors, without_ids
from ifloo.objective.protocol import Logs, OutputLosses, contract_of, states_outputs
from ifloo.params import ParamSpace


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
def scoring(module: nn.Module) -> Generator[None, None, None]:
    """Sets evaluation mode, turns logging off and selects differentiable kernels; restores all three on exit."""
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
    """Turns off logging by the module and its submodules until exit: `self.log` fails inside a transform."""
    if _is_logger(module) and module.log is _no_log:  # an outer context has silenced it and its submodules
        yield
        return
    with logging_to(module, _no_log, _no_log):
        yield


@contextmanager
def logging_to(
    module: nn.Module, log: Callable[..., None], log_dict: Callable[..., None]
) -> Generator[None, None, None]:
    """Replaces `self.log` and `self.log_dict` of the module and its submodules until exit.

    A flag, a tensor or a function that a layer calls `log` is part of its forward pass and stays.
    """
    before = [(m, m.log, m.log_dict) for m in module.modules() if _is_logger(m)]
    for logger, _, _ in before:
        logger.log, logger.log_dict = log, log_dict
    try:
        yield
    finally:
        for logger, own_log, own_log_dict in before:
            del logger.log, logger.log_dict
            if logger.log != own_log:  # it was an attribute of the instance, not a method of its class
                logger.log = own_log
            if logger.log_dict != own_log_dict:
                logger.log_dict = own_log_dict


def _is_logger(module: nn.Module) -> TypeGuard[Logs]:
    """Whether the module logs as a LightningModule does: `log` and `log_dict` are both there, and can be called."""
    return isinstance(module, Logs) and callable(module.log) and callable(module.log_dict)


def _no_log(*_: object, **__: object) -> None:
    """Replaces `self.log`, which fails inside a transform if the module is attached to a Trainer."""


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
        """Returns the outputs z.

        Raises:
            InputError: The module does not define them (see `of_outputs`), or each sample has several draws.
        """
        if isinstance(without_ids(batch), Drawn):
            raise InputError(
                "Outputs are needed apart from the losses, and each sample has several draws (adapt.draws).\n"
                "  Use curvature Hessian, or adapt.draws 1."
            )
        return self._call(theta, self.of_outputs.outputs, without_ids(batch))

    def output_losses(self, outputs: Float[Tensor, "b ..."], batch: Batch) -> Float[Tensor, " b"]:
        """Returns ℓ of each sample from its outputs; raises the errors of `of_outputs`."""
        return self.of_outputs.output_losses(outputs, without_ids(batch))

    def _call(self, theta: Tensor, function: Callable[..., Tensor], *args: object) -> Tensor:
        if args and isinstance(drawn := args[0], Drawn):
            return torch.stack([self._call(theta, function, one) for one in drawn.draws]).mean(0)
        # Parameters outside θ are constants: unless detached, they would add a graph to each result.
        values = {n: p.detach() for n, p in self.module.named_parameters()} | self.space.unflatten(theta)
        result: Tensor = functional_call(self._caller, {f"module.{n}": v for n, v in values.items()}, (function, *args))
        return result
