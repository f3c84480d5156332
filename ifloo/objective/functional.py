"""A module's losses as functions of a flat parameter vector, fit for torch.func transforms."""

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
from ifloo.objective.protocol import Logs, LogsMany, OutputLosses, contract_of
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
    if isinstance(module, Logs) and module.log is _no_log:  # it is within one that is silenced, and so are its parts
        yield
        return
    with logging_to(module, _no_log, _no_log):
        yield


@contextmanager
def logging_to(
    module: nn.Module, log: Callable[..., None], log_dict: Callable[..., None]
) -> Generator[None, None, None]:
    """Other functions for `self.log` and `self.log_dict` of the module and of those in it, restored on leaving."""
    single: list[tuple[Logs, Callable[..., None]]] = [(m, m.log) for m in module.modules() if isinstance(m, Logs)]
    many: list[tuple[LogsMany, Callable[..., None]]] = [(m, m.log_dict) for m, _ in single if isinstance(m, LogsMany)]
    for one, _ in single:
        one.log = log
    for some, _ in many:
        some.log_dict = log_dict
    try:
        yield
    finally:
        for one, own in single:
            del one.log
            if not isinstance(one, Logs) or one.log != own:  # it was of this instance and not of its class
                one.log = own
        for some, own in many:
            del some.log_dict
            if not isinstance(some, LogsMany) or some.log_dict != own:
                some.log_dict = own


def _no_log(*_: object, **__: object) -> None:
    """Stands in for `self.log`, which fails inside a transform on a module attached to a Trainer."""


class _Caller(nn.Module):
    """Makes any function of `module` the forward pass, which is all that functional_call can run."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, function: Callable[..., Tensor], *args: object) -> Tensor:
        return function(*args)


class FunctionalLosses:
    """ℓ and R of a module as functions of θ `[p]`; parameters outside `space` stay at the module's values.

    Attributes:
        module: The module.
        contract: Its members, with the defaults of those that it does not state.
        space: The parameters that θ consists of.
    """

    def __init__(self, module: nn.Module, space: ParamSpace) -> None:
        """Binds a module; its parameters are not touched, neither here nor by a call.

        Raises:
            InputError: the module has no `sample_losses` or no `penalty`.
        """
        self.module, self.space, self.contract = module, space, contract_of(module)
        self._caller = _Caller(module)

    def theta(self) -> Float[Tensor, " p"]:
        """The module's present values, a detached copy."""
        return self.space.values_of(self.module)

    def sample_losses(self, theta: Float[Tensor, " p"], batch: Batch) -> Tensor:
        """ℓ of each sample, `[b]`; whether the model keeps to that shape is for `preflight` to say."""
        return self._call(theta, self.contract.sample_losses, without_ids(batch))

    def loss_alone(self, theta: Float[Tensor, " p"], sample: Batch) -> Float[Tensor, ""]:
        """ℓ of one sample, its tensors without their first dimension, as vmap deals them out."""
        return self.sample_losses(theta, map_tensors(lambda x: x.unsqueeze(0), sample)).squeeze(0)

    def step_loss(self, theta: Float[Tensor, " p"], batch: Batch) -> Float[Tensor, ""]:
        """What the training step of an adapted module makes of a whole batch."""
        return self._call(theta, self.contract.step_loss, without_ids(batch))

    def penalty(self, theta: Float[Tensor, " p"]) -> Float[Tensor, ""]:
        return self._call(theta, self.contract.penalty)

    @property
    def of_outputs(self) -> OutputLosses:
        """The module as one that states its outputs.

        Raises:
            InputError: it does not.
        """
        if isinstance(self.module, OutputLosses):
            return self.module
        raise InputError(
            f"Outputs are needed apart from the losses; {type(self.module).__name__} defines no `outputs(batch)` and "
            "`output_losses(outputs, batch)`.\n  Define both."
        )

    def outputs(self, theta: Float[Tensor, " p"], batch: Batch) -> Float[Tensor, "b ..."]:
        """The outputs z; errors as those of `of_outputs`."""
        return self._call(theta, self.of_outputs.outputs, without_ids(batch))

    def output_losses(self, outputs: Float[Tensor, "b ..."], batch: Batch) -> Float[Tensor, " b"]:
        """ℓ of each sample from its outputs; errors as those of `of_outputs`."""
        return self.of_outputs.output_losses(outputs, without_ids(batch))

    def _call(self, theta: Tensor, function: Callable[..., Tensor], *args: object) -> Tensor:
        # The others are constants: attached, each result would drag a graph through them.
        values = {n: p.detach() for n, p in self.module.named_parameters()} | self.space.unflatten(theta)
        result: Tensor = functional_call(self._caller, {f"module.{n}": v for n, v in values.items()}, (function, *args))
        return result
