"""Choice of the way in which losses are differentiated, by comparison with the definition on drawn samples.

The definition of ℓ_i and ∇ℓ_i is the loss and the backward pass of a batch of one, as the user's own dataset and
collate function make it. Faster forms are taken where they give the same numbers: losses of many samples in one call,
forward-mode products, `vmap` over samples, and sums by one training step on a whole batch.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ifloo.errors import InputError, first_sentence
from ifloo.objective.batches import Batch, batch_size, fetch_samples, sample_ids, to_device, without_ids
from ifloo.objective.causes import cause_of_change
from ifloo.objective.forms import opaque_parts, tensors_of
from ifloo.objective.functional import FunctionalLosses, Path, scoring
from ifloo.objective.loaders import samples_behind, separately, sequential, unwrap_loader
from ifloo.objective.own_backward import OWN_BACKWARD, STOPPED, own_backward
from ifloo.objective.plain import leaf, recordable, recording
from ifloo.objective.randomness import undisturbed
from ifloo.objective.separation import Separation
from ifloo.objective.singles import length_of
from ifloo.objective.slopes import backward_slopes, forward_slopes, random_unit, summed_slope, unit_along
from ifloo.params import ParamSpace

DRAWN = 256  # samples whose lengths are compared
CHECKED = 16  # samples, the shortest and the longest among them, on which fast forms are compared with the definition
SEED = 0
AT_ONCE = 64  # largest batch of singles, where the user's loader names no size


@dataclass(frozen=True)
class Choice:
    """Losses with the way to differentiate them, and the form in which their data come.

    Attributes:
        losses: Losses with their path.
        one_by_one: Whether the data come as `Singles`.
        with_whole: Whether sums are taken by training steps on whole batches.
    """

    losses: FunctionalLosses
    one_by_one: bool = False
    with_whole: bool = False

    def of(self, module: nn.Module, space: ParamSpace) -> FunctionalLosses:
        """Returns the losses of a module of the same class, computed in the same way."""
        return FunctionalLosses(module, space, self.losses.path, self.losses.vmapped, self.losses.separation)

    def loader(self, loader: DataLoader[Batch], size: int) -> DataLoader[Batch]:
        """Returns the loader for the sums of J, in order, with at most `size` samples in a batch."""
        if not self.one_by_one:
            return sequential(loader, size)
        at_once = min(size, loader.batch_size or AT_ONCE)
        return sequential(separately(loader, self.with_whole), at_once)


@dataclass(frozen=True)
class DrawnSamples:
    """Samples drawn from all training data, the shortest and the longest of `DRAWN` among them.

    Attributes:
        dataset: Dataset and collate function of the user's loader.
        collate: Collate function.
        rows: Positions of the samples in the dataset.
        singles: Batch of one of each, on the device and in the dtype of the parameters.
        batched: Whether the loader collates samples into batches.
        device: Device of the parameters.
        dtype: Precision of the parameters.
        n: Number of all samples.
    """

    dataset: object
    collate: Callable[..., Batch]
    rows: tuple[int, ...]
    singles: tuple[Batch, ...]
    batched: bool
    device: torch.device
    dtype: torch.dtype
    n: int

    @classmethod
    def of(cls, loader: DataLoader[Batch], device: torch.device, dtype: torch.dtype) -> DrawnSamples:
        """Draws samples and collates each alone.

        Raises:
            InputError: There is no sample.
        """
        dataset, collate = unwrap_loader(loader)
        n, batched = len(samples_behind(loader)), loader.batch_sampler is not None
        if n == 0:
            raise InputError("The training data hold no sample.")
        drawn = torch.randperm(n, generator=torch.Generator().manual_seed(SEED))[:DRAWN].tolist()
        fetched = separately(loader, with_whole=False).dataset
        alone = {i: collate(one) for i, one in zip(drawn, fetched.__getitems__(drawn), strict=True)}  # type: ignore[attr-defined]
        lengths = {i: length_of(one) for i, one in alone.items()}
        chosen = dict.fromkeys([min(drawn, key=lengths.__getitem__), max(drawn, key=lengths.__getitem__), *drawn])
        rows = tuple(chosen)[:CHECKED]
        singles = tuple(to_device(alone[i], device, dtype) for i in rows)
        return cls(dataset, collate, rows, singles, batched, device, dtype, n)

    @cached_property
    def batch(self) -> Batch:
        """The samples as one batch of the user's collate function."""
        collated = self.collate(fetch_samples(self.dataset, list(self.rows)))  # type: ignore[arg-type]
        return to_device(collated, self.device, self.dtype)

    @cached_property
    def separation(self) -> Separation:
        """Division of batches into samples."""
        first = fetch_samples(self.dataset, [self.rows[0]])  # type: ignore[arg-type]
        return Separation.of_sample(self.collate, first, self.batched)

    @property
    def shares_tensors(self) -> bool:
        """Whether a tensor of a batch belongs to all samples, so that it must not be cut with them."""
        sizes = {tensor.shape[0] for tensor in tensors_of(without_ids(self.batch)) if tensor.ndim}
        return len(sizes) > 1

    @cached_property
    def ids(self) -> Int[Tensor, " b"]:
        """Ids of the samples: those they carry, or their positions."""
        found = [sample_ids(one) for one in self.singles]
        present = [int(ids[0]) for ids in found if ids is not None]
        return torch.tensor(present if len(present) == len(self.rows) else self.rows)


@dataclass(frozen=True)
class Reference:
    """Losses of drawn samples by definition, and their slopes in one direction.

    Attributes:
        direction: Random direction v, `[p]`.
        losses: ℓ_i, `[b]`.
        slopes: ∇ℓ_i · v by the backward pass, `[b]`.
        scales: ‖∇ℓ_i‖ ‖v‖, the largest that a slope can be, `[b]`.
        seconds: Median time of a sample, forward and back.
    """

    direction: Float[Tensor, " p"]
    losses: Float[Tensor, " b"]
    slopes: Float[Tensor, " b"]
    scales: Float[Tensor, " b"]
    seconds: float

    @classmethod
    def of(cls, losses: FunctionalLosses, samples: DrawnSamples) -> Reference:
        """Runs each sample alone, once forward and once back."""
        loop, theta = FunctionalLosses(losses.module, losses.space, Path.LOOP), losses.theta()
        v = cls._direction(loop, theta, samples)
        values, slopes, norms, times = [], [], [], []
        for one in samples.singles:
            begun = time.perf_counter()
            slope, value = loop.gradient_and_value(partial(_single_loss, loop, one), theta)
            values.append(value)
            slopes.append(slope @ v)
            norms.append(slope.norm())
            times.append(time.perf_counter() - begun)
        scales = torch.stack(norms) * v.norm()
        return cls(v, torch.stack(values), torch.stack(slopes), scales, statistics.median(times))

    @staticmethod
    def _direction(loop: FunctionalLosses, theta: Tensor, samples: DrawnSamples) -> Float[Tensor, " p"]:
        """Returns a random unit vector plus that of two gradients.

        Along a random vector alone slopes are √p times smaller than gradients, and rounding could hide a difference.
        """
        slopes = [loop.gradient_and_value(partial(_single_loss, loop, one), theta)[0] for one in samples.singles[-2:]]
        return random_unit(theta, SEED) + torch.stack([unit_along(x) for x in slopes]).sum(0)

    def same_losses(self, found: Tensor) -> bool:
        """Tells whether losses are those of the definition, up to the order of additions."""
        return found.shape == self.losses.shape and bool(((found - self.losses).abs() <= rounding(self.losses)).all())

    def same_slopes(self, found: Tensor) -> bool:
        """Tells whether slopes are those of the backward pass, up to the order of additions."""
        eps = torch.finfo(found.dtype).eps
        # Where a sample is fitted well, its gradient is a difference of numbers near 1, right to a few roundings of 1.
        tolerance = 1e3 * eps * (self.scales + self.losses.abs()) + 50 * eps * self.direction.norm()
        return bool(((found - self.slopes).abs() <= tolerance).all())

    def same_sum(self, found: Tensor) -> bool:
        """Tells whether a slope is that of the sum of the losses, up to the order of additions."""
        tolerance = 1e3 * torch.finfo(found.dtype).eps * (self.scales + self.losses.abs()).sum()
        return bool((found - self.slopes.sum()).abs() <= tolerance)


def rounding(value: Tensor) -> Tensor:
    """Returns the tolerance for losses that differ only in the order of additions: 1e3 roundings of the dtype."""
    return 1e3 * torch.finfo(value.dtype).eps * (1 + value.abs())


def choose_path(losses: FunctionalLosses, loader: DataLoader[Batch]) -> Choice:
    """Chooses the fastest way to differentiate the losses that agrees with the definition on drawn samples.

    Raises:
        InputError: The loss of a sample alone cannot be computed, is not finite, or is not the same at two calls.
    """
    with undisturbed(), scoring(losses.module):
        samples = DrawnSamples.of(loader, losses.space.device, losses.space.dtype)
        if losses.contract.one_by_one:
            reference = Reference.of(losses, samples)
            _check_reference(losses, samples, reference)
        elif (found := _reference_of_stated(losses, samples)) is not None:
            reference = found
        else:
            return Choice(losses)
        return _Trial(losses, samples, reference).choice()


def _reference_of_stated(losses: FunctionalLosses, samples: DrawnSamples) -> Reference | None:
    """Returns the reference of losses stated for batches; None where `preflight` will refuse them."""
    try:
        return Reference.of(losses, samples)
    except (RuntimeError, ValueError):
        return None


@dataclass(frozen=True)
class _Trial:
    """Comparison of the fast forms with the definition, from the fastest to the loop."""

    losses: FunctionalLosses
    samples: DrawnSamples
    reference: Reference
    failures: list[str] = field(default_factory=list)

    def choice(self) -> Choice:
        in_batch = self._attempt(lambda: self.losses.sample_losses(self.theta, self.samples.batch))
        stated = not self.losses.contract.one_by_one
        if stated and (in_batch is None or not self.reference.same_losses(in_batch)):
            return Choice(self.losses)  # `preflight` refuses losses that fail in a batch, or differ in it
        if opaque := opaque_parts(self.samples.singles[0]):
            self.failures.append(f"a {type(opaque[0]).__name__} in a batch has no tensor attributes to split it by")
        elif in_batch is not None and self._splittable and self.reference.same_losses(in_batch):
            for path, products in ((Path.FORWARD, self._forward), (Path.BACKWARD, self._backward)):
                found = self._attempt(products)
                if found is None or not self.reference.same_slopes(found):
                    continue
                if (vmapped := self._vmapped()) or self._summed():
                    return Choice(self._along(path, vmapped))
        whole = self.samples.batched and self._whole_is_mean()
        return Choice(self._along(Path.LOOP, False, whole), True, whole)

    @property
    def _splittable(self) -> bool:
        """Whether the first dimension of a batch counts its samples, so that it can be cut into parts."""
        samples = self.samples
        return samples.batched and batch_size(samples.batch) == len(samples.rows) and not samples.shares_tensors

    def _attempt(self, work: Callable[[], Tensor]) -> Tensor | None:
        """Returns a result, or None if the fast form fails: code of users may raise anything under a transform."""
        try:
            return work()
        except Exception as error:  # also for lack of memory, of which the loop needs the least
            self.failures.append(first_sentence(error))
            return None

    @cached_property
    def theta(self) -> Tensor:
        return self.losses.theta()

    def _along(self, path: Path, vmapped: bool, whole: bool = False) -> FunctionalLosses:
        separation = self.samples.separation if path is Path.LOOP else None
        notes = [] if path is Path.FORWARD else [self._why(path, whole)]
        if has_stopped_part(self.losses, self.samples, self.reference):
            notes.append(self._stopped())
        return FunctionalLosses(self.losses.module, self.losses.space, path, vmapped, separation, tuple(notes))

    def _stopped(self) -> str:
        """Returns the note on a loss whose gradient is not its derivative."""
        loop, one = FunctionalLosses(self.losses.module, self.losses.space, Path.LOOP), self.samples.singles[0]
        with recording():
            own = own_backward(lambda: loop.single_loss(leaf(self.theta), recordable(one)))
        return OWN_BACKWARD.format(", ".join(own)) if own else STOPPED

    def _why(self, path: Path, whole: bool) -> str:
        if path is Path.BACKWARD:
            return not_backward()
        reason = self.failures[0] if self.failures else "batches of several give other losses than samples alone"
        if not self.samples.batched:
            reason = (
                "each item of the data set is a batch (batch_size=None) and counts as one sample, whatever it holds"
            )
        sums = "; sums over samples are taken by training steps on whole batches" if whole else ""
        ms, n = 1e3 * self.reference.seconds, self.samples.n
        return (
            f"losses are computed one sample at a time ({reason}): about {ms:.2g} ms each, {ms * n / 1e3:.2g} s for "
            f"all {n:,}{sums}"
        )

    def _forward(self) -> Tensor:
        return forward_slopes(self.losses, self.theta, self.samples.batch, self.reference.direction)

    def _backward(self) -> Tensor:
        return backward_slopes(self.losses, self.theta, self.samples.batch, self.reference.direction[None])[0]

    def _vmapped(self) -> bool:
        found = self._attempt(
            lambda: self.losses.sample_gradients(self.theta, self.samples.batch) @ self.reference.direction
        )
        return found is not None and self.reference.same_slopes(found)

    def _summed(self) -> bool:
        """Tells whether the gradient of samples together is right, which objectives and products with H are made of."""
        found = self._attempt(
            lambda: summed_slope(self.losses, self.theta, self.samples.batch, self.reference.direction)
        )
        return found is not None and self.reference.same_sum(found)

    def _whole_is_mean(self) -> bool:
        """Tells whether a training step on the batch has the mean of the singles as its loss and gradient."""
        loop = FunctionalLosses(self.losses.module, self.losses.space, Path.LOOP)

        def step() -> Tensor:
            slope, value = loop.gradient_and_value(lambda at: loop.step_loss(at, self.samples.batch), self.theta)
            return torch.stack([value, slope @ self.reference.direction])

        found, reference = self._attempt(step), self.reference
        if found is None:
            return False
        value, slope = found
        mean, slopes = reference.losses.mean(), reference.slopes.mean()
        eps = 1e3 * torch.finfo(value.dtype).eps
        tolerance = eps * (reference.scales.mean() + reference.losses.abs().mean())
        return bool((value - mean).abs() <= rounding(mean)) and bool((slope - slopes).abs() <= tolerance)


def _single_loss(losses: FunctionalLosses, single: Batch, theta: Tensor) -> Tensor:
    return losses.single_loss(theta, single)


def not_backward(over: str = "") -> str:
    """Returns the note on losses whose products are formed by backward passes; `over` says where it was seen."""
    return (
        f"products are formed by backward passes: {over}forward-mode derivatives of this loss are not those of "
        "loss.backward() (torch.no_grad, a tensor hook, or a function with a backward of its own)"
    )


def has_stopped_part(losses: FunctionalLosses, samples: DrawnSamples, reference: Reference) -> bool:
    """Tells whether losses change along a direction by other amounts than their gradients say.

    Central differences are compared with slopes over all drawn samples: a kink that one sample crosses is no such part.
    """
    loop, theta = FunctionalLosses(losses.module, losses.space, Path.LOOP), losses.theta()
    eps, v = torch.finfo(theta.dtype).eps, reference.direction
    step = eps ** (1 / 3) * max(1.0, float(theta.norm())) / float(v.norm())
    with recording(), torch.no_grad():
        ends = [
            torch.stack([loop.single_loss(theta + sign * step * v, recordable(one)) for one in samples.singles])
            for sign in (1, -1)
        ]
    difference = (ends[0] - ends[1]) / (2 * step) - reference.slopes
    noise = 10 * eps * (1 + reference.losses.abs().max()) / step
    apart = difference.square().mean().sqrt()
    return bool(apart > 0.05 * reference.slopes.square().mean().sqrt() + noise)


def _check_reference(losses: FunctionalLosses, samples: DrawnSamples, reference: Reference) -> None:
    if not bool(torch.isfinite(reference.losses).all()):
        k = int((~torch.isfinite(reference.losses)).nonzero()[0])
        if not all(bool(torch.isfinite(x).all()) for x in tensors_of(samples.singles[k])):
            return  # `TrainingData` refuses the sample itself
        raise InputError(not_finite(int(samples.ids[k]), float(reference.losses[k])))
    with recording(), torch.no_grad():
        loop = FunctionalLosses(losses.module, losses.space, Path.LOOP)
        again = torch.stack([loop.single_loss(losses.theta(), recordable(one)) for one in samples.singles])
    if not reference.same_losses(again):
        k = int((again - reference.losses).abs().argmax())

        def run() -> object:
            return loop.single_loss(losses.theta(), recordable(samples.singles[k]))

        raise InputError(
            f"The loss of a sample differs at two calls on the same batch: {float(reference.losses[k]):.9g} and "
            f"{float(again[k]):.9g} (training sample {int(samples.ids[k])}).\n"
            f"  Its cause: {cause_of_change(losses.module, run)}. A loss that draws random numbers is scorable with "
            "their mean in place of the draw, as a function of your own: sample_losses(model, batch) -> [b]."
        )


def not_finite(id_: int, loss: float) -> str:
    """Returns the message for a training sample without a finite loss."""
    return (
        f"The loss of training sample {id_} is {loss}: no score can be computed.\n"
        "  Its targets may all be ignored (ignore_index, padding), so that their mean is 0/0, or the sample or the "
        "weights are not finite. Leave the sample out, or divide by max(count, 1)."
    )
