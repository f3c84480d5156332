"""J(θ; w) = (1/n) Σ_i w_i ℓ_i(θ) + R(θ) over the whole training set."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import grad
from torch.utils.data import DataLoader

from ifloo.errors import InputError
from ifloo.objective.batches import Batch, Identified, SampleSource, TrainingData, slice_batch, tensors_of, without_ids
from ifloo.objective.epoch_weights import EpochWeights
from ifloo.objective.functional import FunctionalLosses, scoring
from ifloo.objective.loaders import weighted
from ifloo.objective.paths import choose_path, not_finite
from ifloo.objective.singles import Singles
from ifloo.objective.weights import SampleWeights
from ifloo.params import ParamSpace


@dataclass(frozen=True)
class Objective:
    """The function whose minimiser is attributed; every sum runs over all n samples, whatever the batches.

    Attributes:
        losses: Sample losses ℓ_i and penalty R as functions of θ.
        data: All n training samples (`TrainingData`), or a subsample of them (`Subsample`).
        weights: Sample weights w; 1 for every sample except in refits.
    """

    losses: FunctionalLosses
    data: SampleSource
    weights: SampleWeights = field(default_factory=SampleWeights)

    @classmethod
    def of(
        cls, module: nn.Module, loader: DataLoader[Batch], parameters: Sequence[str] = ("*",), batch_size: int = 5000
    ) -> Objective:
        """Builds J of a module that meets the contract (`SampleLosses`), over the dataset of a training loader.

        Args:
            module: Model; its parameters are not changed.
            loader: Training loader; its order and batch size do not matter.
            parameters: Shell-style patterns for the names of the parameters that θ consists of.
            batch_size: Number of samples per batch in sums over the data.

        Raises:
            InputError: No parameter matches, or the data have no fixed order, contain NaN or repeat an id.
        """
        space = ParamSpace.of(module, parameters)
        choice = choose_path(FunctionalLosses(module, space), loader)
        accepts = have_finite_losses(choice.losses)
        data = TrainingData(choice.loader(loader, batch_size), space.device, space.dtype, accepts=accepts)
        return cls(choice.losses, data)

    @property
    def n(self) -> int:
        """Number of samples."""
        return self.data.n

    @property
    def size(self) -> int:
        """p, the number of parameters."""
        return self.losses.space.size

    @property
    def factors(self) -> Float[Tensor, " n"] | None:
        """n·c_i of each sample in J = Σ_i c_i ℓ_i, float64; None if J is the plain mean."""
        return self.data.factors if isinstance(self.data, TrainingData) else None

    def reweighted(self, weights: SampleWeights) -> Objective:
        """Returns the objective of a refit: the same losses and data with other weights w."""
        return replace(self, weights=weights)

    def weighted(self, weights: Float[Tensor, " n"] | EpochWeights) -> Objective:
        """Returns J = Σ_i c_i ℓ_i + R, for training steps or epochs that weigh their samples.

        Args:
            weights: Weights c_i of the training samples, in their order, as `epoch_weights` finds them for the batches
                of a fit; or relative weights a_i >= 0 of samples that are all in one batch, where c_i = a_i / Σ a. A
                training step on a batch must be Σ a_i ℓ_i / Σ a_i over the batch.

        Raises:
            InputError: The objective runs over a subsample of the data.
        """
        if not isinstance(self.data, TrainingData):
            raise InputError("Samples can be weighted where the objective runs over all training data.")
        return replace(self, data=weighted_data(self.data, weights))

    def part(self, theta: Float[Tensor, " p"], ids: Tensor, batch: Batch) -> Float[Tensor, ""]:
        """Returns the share of one batch in (1/n) Σ_i w_i ℓ_i, in nats.

        Where the samples come one by one with whole batches of them, and have equal weights w, the share is taken of
        training steps on the whole batches: many times faster, and equal (`choose_path` checks it).
        """
        inner = without_ids(batch)
        if isinstance(inner, Singles) and inner.summed and self.weights.equal_for(ids):
            factors = batch.factors if isinstance(batch, Identified) else None
            steps = [
                (len(part.rows) if factors is None else float(factors[list(part.rows)].sum()))
                * self.losses.step_loss(theta, part.batch)
                for part in inner.summed
            ]
            return self.weights.default * torch.stack(steps).sum() / self.n
        losses = self.losses.sample_losses(theta, batch)
        return (self.weights.of(ids, losses.dtype) * losses).sum() / self.n

    def terms(self, ids: Tensor, batch: Batch) -> Iterator[Callable[[Tensor], Tensor]]:
        """Yields functions of θ whose sum is `part`: one, or one a sample where no sum over a batch is possible.

        Each holds the activations of one training step only.
        """
        inner = without_ids(batch)
        if not isinstance(inner, Singles) or (inner.summed and self.weights.equal_for(ids)):
            yield lambda theta: self.part(theta, ids, batch)
            return
        for k in range(len(inner)):
            one = slice(k, k + 1)
            yield partial(_part, self, ids[one], slice_batch(batch, one))

    def value(self, theta: Float[Tensor, " p"]) -> Float[Tensor, ""]:
        """Returns J(θ; w), nats."""
        with torch.no_grad():
            parts = [term(theta) for ids, batch in self.data.with_ids() for term in self.terms(ids, batch)]
            return torch.stack(parts).sum() + self.losses.penalty(theta)

    def gradient(self, theta: Float[Tensor, " p"]) -> Float[Tensor, " p"]:
        """Returns ∇J(θ; w), nats per unit of each parameter."""
        return self.value_and_gradient(theta)[1]

    def value_and_gradient(self, theta: Float[Tensor, " p"]) -> tuple[Float[Tensor, ""], Float[Tensor, " p"]]:
        """Returns J(θ; w), nats, and ∇J(θ; w), nats per unit of each parameter, from one pass over the data."""
        gradient, value = self.losses.gradient_and_value(self.losses.penalty, theta)
        for ids, batch in self.data.with_ids():
            for term in self.terms(ids, batch):
                g, v = self.losses.gradient_and_value(term, theta)
                gradient, value = gradient + g, value + v
        return value, gradient

    def part_gradient(self, theta: Float[Tensor, " p"], ids: Tensor, batch: Batch) -> Float[Tensor, " p"]:
        """Returns the gradient of `part`, which Hessian-vector products differentiate once more."""
        gradient: Tensor = grad(self.part)(theta, ids, batch)
        return gradient


def have_finite_losses(losses: FunctionalLosses) -> Callable[[Batch], bool]:
    """Returns a function that tells whether the losses of a batch with NaN are finite.

    They may be: a step may leave out the entries that are missing. It raises an InputError where it does so for some
    samples, and the loss of another one is not finite, whose entries may all be missing.
    """
    theta = losses.theta()

    def finite(batch: Batch) -> bool:
        with torch.no_grad(), scoring(losses.module):
            found = losses.sample_losses(theta, batch)
        wrong = ~torch.isfinite(found)
        if not bool(wrong.any()):
            return True
        rows = [slice_batch(batch, slice(k, k + 1)) for k in range(len(found))]
        lacking = [not all(bool(torch.isfinite(x).all()) for x in tensors_of(row)) for row in rows]
        if any(lack and not bad for lack, bad in zip(lacking, wrong.tolist(), strict=True)):
            k = int(wrong.nonzero()[0])
            position = int(batch.positions[k]) if isinstance(batch, Identified) else k
            raise InputError(not_finite(position, float(found[k])))
        return False

    return finite


def weighted_data(data: TrainingData, weights: Float[Tensor, " n"] | EpochWeights) -> TrainingData:
    """Returns the training data with the factor n·c_i beside each sample; see `Objective.weighted`.

    Raises:
        InputError: The data do not come from a DataLoader.
    """
    if not isinstance(data.loader, DataLoader):
        raise InputError(f"Samples can be weighted where a DataLoader yields them, got {type(data.loader).__name__}.")
    if not isinstance(weights, EpochWeights):
        weights = EpochWeights.of_one_batch(weights)
    factors, in_batch = weights.shares * data.n, weights.in_batch
    loader = weighted(data.loader, data.ids, factors, in_batch, data.dtype)
    found = TrainingData(loader, data.device, data.dtype, accepts=data.accepts)
    found.factors, found.in_batch = factors, in_batch
    return found


def _part(objective: Objective, ids: Tensor, batch: Batch, theta: Tensor) -> Tensor:
    return objective.part(theta, ids, batch)


@contextmanager
def attributed(
    objective: Objective, theta: Float[Tensor, " p"], patterns: Sequence[str]
) -> Generator[tuple[Objective, Float[Tensor, " q"]], None, None]:
    """Restricts J and θ̂ to the parameters that match the patterns; for `*`, keeps those of the objective.

    Within the context the module holds θ̂, so that the other parameters are fixed at θ̂; on exit its previous values are
    restored.

    Raises:
        InputError: No parameter matches.
    """
    if tuple(patterns) == ("*",):
        yield objective, theta
        return
    losses = objective.losses
    before = losses.theta()
    losses.space.write_to(losses.module, theta)
    try:
        part = losses.restricted(ParamSpace.of(losses.module, patterns))
        yield replace(objective, losses=part), part.theta()
    finally:
        losses.space.write_to(losses.module, before)
