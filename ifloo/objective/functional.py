"""The losses of a module as functions of a flat parameter vector, for use in torch.func transforms."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from enum import Enum
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import grad, grad_and_value, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from ifloo.errors import InputError
from ifloo.objective.batches import Batch, Identified, batch_size, joined_batch, slice_batch, times_factors, without_ids
from ifloo.objective.exact_kernels import exact_kernels
from ifloo.objective.exchanged import call_exchanged
from ifloo.objective.forms import map_tensors
from ifloo.objective.kept_state import changed_apart, restored_in_place
from ifloo.objective.plain import Scalar, gradient_and_value, recordable
from ifloo.objective.protocol import OutputLosses, contract_of, states_outputs
from ifloo.objective.seeded_draws import drawing
from ifloo.objective.separation import Separation
from ifloo.objective.silence import logging_to, silenced
from ifloo.objective.singles import Drawn, Singles
from ifloo.objective.traced import traced_masks
from ifloo.params import ParamSpace

__all__ = ["FunctionalLosses", "Path", "differentiable_kernels", "logging_to", "scoring", "silenced"]


@contextmanager
def differentiable_kernels() -> Generator[None, None, None]:
    """Selects code that allows second and forward-mode derivatives until exit.

    Fused attention and compiled graphs have none, weight normalisation has wrong ones, and mask code of transformers
    reads values unless it is traced.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), exact_kernels(), traced_masks(), uncompiled_graphs():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def uncompiled_graphs() -> Generator[None, None, None]:
    """Runs modules compiled by `torch.compile` without their graphs, which have no double backward, until exit."""
    with ExitStack() as stack:
        if "torch._dynamo" in sys.modules:  # importing it takes seconds; unless it is there, nothing is compiled
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


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
    """Sets evaluation mode, turns logging and sparse gradients off and selects differentiable kernels, until exit.

    What passes change in the user's layers, such as metrics, lists and counters, is on exit as before.
    """
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


class Path(Enum):
    """The way in which derivatives of sample losses are computed; the value describes it in logs."""

    FORWARD = "forward-mode derivatives (jvp)"
    BACKWARD = "backward passes (vjp of vjp)"
    LOOP = "backward passes of single samples, one by one"


class FunctionalLosses:
    """ℓ and R of a module as functions of θ `[p]`; parameters outside `space` keep the module's values.

    Attributes:
        module: Model that states the losses.
        contract: Contract of the model, with defaults for the members that it does not define.
        space: Parameters that θ consists of.
        path: Way in which derivatives are computed; `ifloo.objective.paths` chooses it.
        vmapped: Whether `torch.func.vmap` runs the losses of single samples; if not, they are computed in a loop.
        separation: Division of batches into samples, by which a loop takes apart a batch that holds no `Singles`; None
            if it is not known.
        notes: Sentences on how the losses are differentiated, where that is not as usual.
    """

    def __init__(
        self,
        module: nn.Module,
        space: ParamSpace,
        path: Path = Path.FORWARD,
        vmapped: bool = True,
        separation: Separation | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        """Binds a module; its parameters are never changed, neither here nor by a call.

        Raises:
            InputError: The module has no `sample_losses` or no `penalty`.
        """
        self.module, self.space, self.contract = module, space, contract_of(module)
        self.path, self.vmapped, self.separation, self.notes = path, vmapped, separation, notes
        self._caller = _Caller(module)
        self._changes = False

    def take(self, path: Path, note: str) -> None:
        """Changes the way in which derivatives are computed, for a reason found over all samples."""
        self.path, self.notes = path, (*self.notes, note)

    def restricted(self, space: ParamSpace) -> FunctionalLosses:
        """Returns the same losses as functions of other parameters, computed in the same way."""
        return FunctionalLosses(self.module, space, self.path, self.vmapped, self.separation, self.notes)

    def one_by_one(self) -> FunctionalLosses:
        """Returns the same losses by definition: of single samples, by plain autograd."""
        return FunctionalLosses(self.module, self.space, Path.LOOP)

    def theta(self) -> Float[Tensor, " p"]:
        """Returns the module's current values as a detached copy."""
        return self.space.values_of(self.module)

    def in_form(self, batch: Batch) -> Batch:
        """Returns a batch in the form that losses are computed in: `Singles` for a loop, else one batch where they fit.

        Raises:
            InputError: The samples of the batch cannot be separated.
        """
        inner = without_ids(batch)
        if self.path is not Path.LOOP:
            joined = joined_batch(inner) if isinstance(inner, Singles) else None
            if joined is None:
                return batch
            return batch._replace(batch=joined) if isinstance(batch, Identified) else joined
        if isinstance(inner, Singles):
            return batch
        if isinstance(batch, Identified) and len(batch.positions) == 1:
            return batch._replace(batch=Singles((inner,)))
        if self.separation is None:
            raise InputError(
                f"The samples of a batch ({type(inner).__name__}) cannot be separated: losses are computed one sample "
                "at a time, and the form of the training batches is not known.\n"
                "  Give each as a batch of one: ifloo.objective.Singles((first, second))."
            )
        singles = self.separation.singles(inner)
        if not isinstance(batch, Identified):
            return Singles(singles.batches)
        if len(singles) != len(batch.positions):
            raise InputError(
                f"{len(batch.positions)} ids came with a batch ({type(inner).__name__}) of {len(singles)} samples.\n"
                "  Give one id for each."
            )
        return batch._replace(batch=Singles(singles.batches))

    def sample_losses(self, theta: Float[Tensor, " p"], batch: Batch) -> Tensor:
        """Returns ℓ of each sample, `[b]`, times its factor if the batch has factors.

        The shape is that of the model's own result, which `choose_path` checks.
        """
        batch = self.in_form(batch)
        inner = without_ids(batch)
        if isinstance(inner, Singles):
            losses = torch.stack([self.single_loss(theta, one) for one in inner.batches])
        else:
            losses = self._call(theta, self.contract.sample_losses, inner)
        return times_factors(losses, batch)

    def single_loss(self, theta: Float[Tensor, " p"], single: Batch) -> Float[Tensor, ""]:
        """Returns ℓ of the sample in a batch of one."""
        batch = recordable(without_ids(single)) if self.path is Path.LOOP else without_ids(single)
        return self._call(theta, self.contract.single_loss, batch)

    def sample_gradients(self, theta: Float[Tensor, " p"], batch: Batch) -> Float[Tensor, "b p"]:
        """Returns ∇ℓ_i(θ) of each sample, by vmap or, where that does not run the module, one after the other."""
        batch = self.in_form(batch)
        if self.path is Path.LOOP or not self.vmapped or isinstance(without_ids(batch), Singles):
            return torch.stack(list(self.gradients_one_by_one(theta, batch)))
        gradients: Tensor = vmap(grad(self.loss_alone), in_dims=(None, 0))(theta, without_ids(batch))
        factors = batch.factors if isinstance(batch, Identified) else None
        return gradients if factors is None else gradients * factors.unsqueeze(1)

    def gradients_one_by_one(self, theta: Float[Tensor, " p"], batch: Batch) -> Iterator[Float[Tensor, " p"]]:
        """Yields ∇ℓ_i(θ) of each sample of a batch, from a backward pass of its own."""
        batch = self.in_form(batch)
        for k in range(batch_size(batch)):
            one = slice_batch(batch, slice(k, k + 1))
            yield self.gradient_and_value(partial(_sum_of_losses, self, one), theta)[0]

    def gradient_and_value(self, function: Scalar, theta: Float[Tensor, " p"]) -> tuple[Tensor, Tensor]:
        """Returns ∇f(θ) and f(θ) of a function of these losses, by torch.func or, for `LOOP`, by plain autograd."""
        if self.path is Path.LOOP:
            return gradient_and_value(function, theta)
        slope, value = grad_and_value(function)(theta)
        return slope, value

    def loss_alone(self, theta: Float[Tensor, " p"], sample: Batch) -> Float[Tensor, ""]:
        """Returns ℓ of one sample, whose tensors lack the first dimension, as within vmap."""
        return self.sample_losses(theta, map_tensors(lambda x: x.unsqueeze(0), sample)).squeeze(0)

    def step_loss(self, theta: Float[Tensor, " p"], batch: Batch) -> Float[Tensor, ""]:
        """Returns the loss of a training step on a whole batch; see `ModelContract.step_loss`."""
        inner = without_ids(batch)
        return self._call(theta, self.contract.step_loss, recordable(inner) if self.path is Path.LOOP else inner)

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
                "Outputs are needed apart from the losses, and each sample has several draws (--adapt.draws).\n"
                "  Use curvature Hessian, or --adapt.draws 1."
            )
        return self._call(theta, self.of_outputs.outputs, without_ids(batch))

    def output_losses(self, outputs: Float[Tensor, "b ..."], batch: Batch) -> Float[Tensor, " b"]:
        """Returns ℓ of each sample from its outputs; raises the errors of `of_outputs`."""
        return self.of_outputs.output_losses(outputs, without_ids(batch))

    def _call(self, theta: Tensor, function: Callable[..., Tensor], *args: object) -> Tensor:
        if args and isinstance(drawn := args[0], Drawn):
            return torch.stack([self._of_draw(theta, function, k, one) for k, one in enumerate(drawn.draws)]).mean(0)
        # Parameters outside θ are constants: unless detached, they would add a graph to each result.
        values = {n: p.detach() for n, p in self.module.named_parameters()} | self.space.unflatten(theta)
        named, restored = {f"module.{n}": v for n, v in values.items()}, restored_in_place()
        with changed_apart() if self._changes else nullcontext():
            result = call_exchanged(self._caller, named, (function, *args))
        if self.path is Path.LOOP and restored_in_place() > restored:
            self._changes = True  # the pass changed a tensor in place: its graph may be lost
            with changed_apart():
                result = call_exchanged(self._caller, named, (function, *args))
        return result

    def _of_draw(self, theta: Tensor, function: Callable[..., Tensor], k: int, batch: Batch) -> Tensor:
        with drawing(k):
            return self._call(theta, function, batch)


def _sum_of_losses(losses: FunctionalLosses, batch: Batch, theta: Tensor) -> Tensor:
    return losses.sample_losses(theta, batch).sum()
