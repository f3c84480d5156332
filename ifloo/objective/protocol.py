"""The contract of a model: the members that the mathematics needs, and optional members with their defaults.

A model meets the contract by inheriting `ModelContract` (every `SampleLossModule` does), or by defining
`sample_losses` and `penalty`. Code that takes an arbitrary module calls `contract_of` once and uses the result.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Generic, Protocol, runtime_checkable

import typing_extensions
from jaxtyping import Float
from torch import Tensor
from typing_extensions import TypeIs, TypeVar

from ifloo.errors import InputError
from ifloo.objective.batches import Batch
from ifloo.params import prefix_of, uncompiled

# Type of the batches that a model takes; Any unless the inheriting class states it.
BatchT_contra = TypeVar("BatchT_contra", contravariant=True, default=Any)


@runtime_checkable
class SampleLosses(Protocol[BatchT_contra]):
    """The two members a model must have: ℓ_i and R of J(θ; w) = (1/n) Σ_i w_i ℓ_i(θ) + R(θ)."""

    def sample_losses(self, batch: BatchT_contra) -> Float[Tensor, " b"]:
        """Returns ℓ of each sample of the batch, in nats, unreduced, without the penalty."""
        ...

    def penalty(self) -> Float[Tensor, ""]:
        """Returns the penalty R(θ), a scalar tensor; zeros(()) if the model has no penalty."""
        ...


@runtime_checkable
class OutputLosses(SampleLosses[BatchT_contra], Protocol[BatchT_contra]):
    """Optional members: a model whose sample losses are a convex loss of its outputs, as Gauss-Newton requires.

    `sample_losses(batch)` equals `output_losses(outputs(batch), batch)`.
    """

    def outputs(self, batch: BatchT_contra) -> Float[Tensor, "b ..."]:
        """Returns the model's outputs, e.g. logits."""
        ...

    def output_losses(self, outputs: Float[Tensor, "b ..."], batch: BatchT_contra) -> Float[Tensor, " b"]:
        """Returns ℓ of each sample from its outputs, in nats."""
        ...


@runtime_checkable
class Speaker(Protocol):
    """Optional member: a language model that generates answers."""

    def generated(self, batch: Batch, end: int) -> Tensor:
        """Returns rows of token ids whose last answer is replaced by the model's own, followed by token `end`."""
        ...


@runtime_checkable
class Logs(Protocol):
    """A module that logs numbers, as every LightningModule does."""

    log: Callable[..., None]
    log_dict: Callable[..., None]


class ModelContract(ABC, Generic[BatchT_contra]):
    """The whole contract, with a default for every optional member.

    Attributes:
        wraps: Prefix of the parameter names of a module around the user's own; patterns and messages leave it out.
        one_by_one: True if `sample_losses` runs a training step on batches of one; preflight then compares its mean
            with `step_loss`.
        decoupled_decay: Weight decay that the optimizer applies separately from the gradient (AdamW); J does not
            contain it.
    """

    wraps: str = ""
    one_by_one: bool = False
    decoupled_decay: float = 0.0

    @abstractmethod
    def sample_losses(self, batch: BatchT_contra) -> Float[Tensor, " b"]:
        """Returns ℓ of each sample of the batch, nats, unreduced, without the penalty."""

    @abstractmethod
    def penalty(self) -> Float[Tensor, ""]:
        """Returns the penalty R(θ), a scalar tensor, e.g. ½λ‖θ‖²; zeros(()) if the model has no penalty."""

    def step_loss(self, batch: BatchT_contra) -> Float[Tensor, ""]:
        """Returns the loss of a training step on a whole batch, nats, without penalty and without sample weights."""
        return self.sample_losses(batch).mean()

    def single_loss(self, batch: BatchT_contra) -> Float[Tensor, ""]:
        """Returns ℓ of the sample in a batch of one, nats, without penalty.

        Raises:
            InputError: `sample_losses` gives no loss for each sample.
        """
        losses = self.sample_losses(batch)
        if losses.shape != (1,):
            raise InputError(
                f"sample_losses must return one loss a sample, shape [1] for a batch of one; got {list(losses.shape)}."
                "\n  Leave out the reduction (reduction='none') and sum over everything but the first dimension."
            )
        return losses.squeeze(0)

    def strong_convexity(self) -> float | None:
        """Returns a known μ > 0 with ∇²J ⪰ μI everywhere, used in error bounds; None if no such μ is known."""
        return None


def contract_of(module: object) -> ModelContract:
    """Returns the contract of a module that has `sample_losses` and `penalty`, with defaults for what it lacks.

    A module that forwards attributes to another by `__getattr__` has the members of that other one. The contract of a
    module compiled by `torch.compile` is that of the module inside.

    Raises:
        InputError: The module lacks one of the two.
    """
    if (inner := uncompiled(module)) is not module:
        return contract_of(inner)
    if isinstance(module, ModelContract):
        return module
    if states_losses(module):
        return _DefaultedContract(module)
    raise InputError(
        f"{type(module).__name__} does not state its losses: it has no sample_losses(batch) or no penalty().\n"
        "  Add both methods, inherit from ifloo.models.SampleLossModule, or wrap it: ifloo.models.Adapted(module)."
    )


def states_losses(module: object) -> TypeIs[SampleLosses]:
    """Returns whether a module has the members of `SampleLosses`, itself or by `__getattr__`."""
    match module:
        case SampleLosses() | _Forwards(sample_losses=_, penalty=_):
            return True
    return False


def states_outputs(module: object) -> TypeIs[OutputLosses]:
    """Returns whether a module has the members of `OutputLosses`, itself or by `__getattr__`."""
    match module:
        case OutputLosses() | _Forwards(sample_losses=_, penalty=_, outputs=_, output_losses=_):
            return True
    return False


def generates(module: object) -> TypeIs[Speaker]:
    """Returns whether a module has the member of `Speaker`, itself or by `__getattr__`."""
    match module:
        case Speaker() | _Forwards(generated=_):
            return True
    return False


# A member is sought in two steps. First on the class and the instance, by `typing_extensions.Protocol`, which does
# not evaluate it: the member is then evaluated outside the check, and a property that raises AttributeError stops the
# program. `typing.Protocol` of Python 3.10 and 3.11 would evaluate it, and take it for absent. Then by `_Forwards` in
# a class pattern, which asks the module's `__getattr__` and does not match if that raises AttributeError.


@typing_extensions.runtime_checkable
class _OneByOne(typing_extensions.Protocol):
    @property
    def one_by_one(self) -> bool: ...


@typing_extensions.runtime_checkable
class _DecoupledDecay(typing_extensions.Protocol):
    @property
    def decoupled_decay(self) -> float: ...


@typing_extensions.runtime_checkable
class _StepLoss(typing_extensions.Protocol):
    def step_loss(self, batch: Batch, /) -> Tensor: ...


@typing_extensions.runtime_checkable
class _StrongConvexity(typing_extensions.Protocol):
    def strong_convexity(self) -> float | None: ...


class _Forwards(ABC):
    """Any object, typed as one that may forward members; of use only in a class pattern that names members."""

    one_by_one: bool
    decoupled_decay: float
    sample_losses: Callable[..., Tensor]
    penalty: Callable[[], Tensor]
    step_loss: Callable[..., Tensor]
    strong_convexity: Callable[[], float | None]
    outputs: Callable[..., Tensor]
    output_losses: Callable[..., Tensor]
    generated: Callable[..., Tensor]

    @classmethod
    def __subclasshook__(cls, _: type) -> bool:
        return True


class _DefaultedContract(ModelContract):
    """The contract of a module that defines members of it without inheriting `ModelContract`."""

    def __init__(self, module: SampleLosses) -> None:
        """Reads the values once; methods are called on the module each time."""
        self._module = module
        self.wraps = prefix_of(module)
        match module:
            case _OneByOne():
                self.one_by_one = module.one_by_one
            case _Forwards(one_by_one=one_by_one):
                self.one_by_one = one_by_one
        match module:
            case _DecoupledDecay():
                self.decoupled_decay = module.decoupled_decay
            case _Forwards(decoupled_decay=decoupled_decay):
                self.decoupled_decay = decoupled_decay

    def sample_losses(self, batch: Batch) -> Tensor:
        return self._module.sample_losses(batch)

    def penalty(self) -> Float[Tensor, ""]:
        return self._module.penalty()

    def step_loss(self, batch: Batch) -> Float[Tensor, ""]:
        match self._module:
            case _StepLoss() as module:
                return module.step_loss(batch)
            case _Forwards(step_loss=step_loss):
                return step_loss(batch)
        return super().step_loss(batch)

    def strong_convexity(self) -> float | None:
        match self._module:
            case _StrongConvexity() as module:
                return module.strong_convexity()
            case _Forwards(strong_convexity=strong_convexity):
                return strong_convexity()
        return None
