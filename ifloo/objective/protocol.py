"""The contract of a model: what the mathematics needs of it, and what it may state besides, with defaults.

A model meets the contract by inheriting `ModelContract` (every `SampleLossModule` does), or by merely having
`sample_losses` and `penalty`. Code that is given any module calls `contract_of` once and asks the result.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Generic, Protocol, runtime_checkable

import typing_extensions
from jaxtyping import Float
from torch import Tensor
from typing_extensions import TypeVar

from ifloo.errors import InputError
from ifloo.objective.batches import Batch
from ifloo.params import prefix_of

# Form of the batches that a model understands; Any where the class that inherits does not say it.
BatchT_contra = TypeVar("BatchT_contra", contravariant=True, default=Any)


@runtime_checkable
class SampleLosses(Protocol[BatchT_contra]):
    """The two members a model must have: ℓ_i and R of J(θ; w) = (1/n) Σ_i w_i ℓ_i(θ) + R(θ)."""

    def sample_losses(self, batch: BatchT_contra) -> Float[Tensor, " b"]:
        """ℓ of each sample of the batch, in nats, unreduced, without the penalty."""
        ...

    def penalty(self) -> Float[Tensor, ""]:
        """Penalty R(θ), a scalar tensor; return zeros(()) if there is none."""
        ...


@runtime_checkable
class OutputLosses(SampleLosses[BatchT_contra], Protocol[BatchT_contra]):
    """Optional: a model whose sample losses are a convex loss of its outputs, which Gauss-Newton needs.

    `sample_losses(batch)` equals `output_losses(outputs(batch), batch)`.
    """

    def outputs(self, batch: BatchT_contra) -> Float[Tensor, "b ..."]:
        """The model's outputs, e.g. logits."""
        ...

    def output_losses(self, outputs: Float[Tensor, "b ..."], batch: BatchT_contra) -> Float[Tensor, " b"]:
        """ℓ of each sample from its outputs, in nats."""
        ...


@runtime_checkable
class Speaker(Protocol):
    """Optional: a language model that writes answers."""

    def generated(self, batch: Batch, end: int) -> Tensor:
        """Rows of token ids, the last answer of each replaced by the model's, `end` after it."""
        ...


@runtime_checkable
class Logs(Protocol):
    """A module that logs numbers, as every LightningModule does."""

    log: Callable[..., None]


@runtime_checkable
class LogsMany(Protocol):
    """A module that logs many numbers at once, as every LightningModule does."""

    log_dict: Callable[..., None]


class ModelContract(ABC, Generic[BatchT_contra]):
    """The whole contract, with a default for every member that a model need not state.

    Attributes:
        wraps: Prefix of the parameter names of a module around the user's own; patterns and messages leave it out.
        one_by_one: True where `sample_losses` runs a training step on batches of one, which preflight then compares
            with `step_loss`.
        decoupled_decay: Weight decay that the optimizer applies beside the gradient (AdamW), which J does not contain.
    """

    wraps: str = ""
    one_by_one: bool = False
    decoupled_decay: float = 0.0

    @abstractmethod
    def sample_losses(self, batch: BatchT_contra) -> Float[Tensor, " b"]:
        """ℓ of each sample of the batch, nats, unreduced, without the penalty."""

    @abstractmethod
    def penalty(self) -> Float[Tensor, ""]:
        """Penalty R(θ), a scalar tensor, e.g. ½λ‖θ‖²; return zeros(()) if there is none."""

    def step_loss(self, batch: BatchT_contra) -> Float[Tensor, ""]:
        """Loss of a training step on a whole batch, nats, without this contract's penalty and without weights."""
        return self.sample_losses(batch).mean()

    def strong_convexity(self) -> float | None:
        """A known μ > 0 with ∇²J ⪰ μI everywhere, for error bounds; None where none is known."""
        return None


def contract_of(module: object) -> ModelContract:
    """The contract of any module that has `sample_losses` and `penalty`: itself, or its members with the defaults.

    Raises:
        InputError: the module lacks one of the two.
    """
    if isinstance(module, ModelContract):
        return module
    if isinstance(module, SampleLosses):
        return _Stated(module)
    raise InputError(
        f"{type(module).__name__} does not state its losses: it has no sample_losses(batch) or no penalty().\n"
        "  Add both methods, inherit from ifloo.models.SampleLossModule, or wrap it: ifloo.models.Adapted(module)."
    )


# The optional members, each asked for by itself. `typing_extensions.Protocol` looks a member up without evaluating
# it: with that of Python 3.10 and 3.11 a property that raises AttributeError would count as absent, and its default
# would be taken in silence.


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


class _Stated(ModelContract):
    """The contract of a module that has its members without inheriting them."""

    def __init__(self, module: SampleLosses) -> None:
        """Looks the values up once; methods are asked at each call."""
        self._module = module
        self.wraps = prefix_of(module)
        if isinstance(module, _OneByOne):
            self.one_by_one = module.one_by_one
        if isinstance(module, _DecoupledDecay):
            self.decoupled_decay = module.decoupled_decay

    def sample_losses(self, batch: Batch) -> Tensor:
        return self._module.sample_losses(batch)

    def penalty(self) -> Float[Tensor, ""]:
        return self._module.penalty()

    def step_loss(self, batch: Batch) -> Float[Tensor, ""]:
        return self._module.step_loss(batch) if isinstance(self._module, _StepLoss) else super().step_loss(batch)

    def strong_convexity(self) -> float | None:
        return self._module.strong_convexity() if isinstance(self._module, _StrongConvexity) else None
