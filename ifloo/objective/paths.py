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
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ifloo.errors import InputError, first_sentence
from ifloo.objective.batches import Batch, batch_size, without_ids
from ifloo.objective.causes import cause_of_change
from ifloo.objective.drawn_samples import SEED, DrawnSamples
from ifloo.objective.forms import opaque_parts, tensors_of
from ifloo.objective.functional import FunctionalLosses, Path, scoring
from ifloo.objective.loaders import separately, sequential
from ifloo.objective.own_backward import OWN_BACKWARD, STOPPED, own_backward
from ifloo.objective.plain import leaf, recordable, recording
from ifloo.objective.randomness import undisturbed
from ifloo.objective.rounding import Rounding
from ifloo.objective.singles import Singles
from ifloo.objective.slopes import backward_slopes, forward_slopes, random_unit, summed_slope, unit_along
from ifloo.objective.torch_texts import without_slow_rules
from ifloo.params import ParamSpace

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
class Reference:
    """Losses of drawn samples by definition, and their slopes in one direction.

    Attributes:
        direction: Random direction v, `[p]`.
        losses: ℓ_i, `[b]`.
        slopes: ∇ℓ_i · v by the backward pass, `[b]`.
        scales: ‖∇ℓ_i‖ ‖v‖, the largest that a slope can be, `[b]`.
        rounding: Differences of losses and slopes that rounding allows.
        seconds: Median time of a sample, forward and back.
    """

    direction: Float[Tensor, " p"]
    losses: Float[Tensor, " b"]
    slopes: Float[Tensor, " b"]
    scales: Float[Tensor, " b"]
    rounding: Rounding
    seconds: float

    @classmethod
    def of(cls, losses: FunctionalLosses, samples: DrawnSamples) -> Reference:
        """Runs each sample alone, once forward and once back, and measures rounding on a few."""
        loop, theta = losses.one_by_one(), losses.theta()
        v = cls._direction(loop, theta, samples)
        values, slopes, norms, times = [], [], [], []
        for one in samples.singles:
            begun = time.perf_counter()
            slope, value = loop.gradient_and_value(partial(_single_loss, loop, one), theta)
            values.append(value)
            slopes.append(slope @ v)
            norms.append(slope.norm())
            times.append(time.perf_counter() - begun)
        rounding = Rounding.of(loop, theta, Singles(samples.singles), v)
        scales = torch.stack(norms) * v.norm()
        return cls(v, torch.stack(values), torch.stack(slopes), scales, rounding, statistics.median(times))

    @staticmethod
    def _direction(loop: FunctionalLosses, theta: Tensor, samples: DrawnSamples) -> Float[Tensor, " p"]:
        """Returns a random unit vector plus that of two gradients.

        Along a random vector alone slopes are √p times smaller than gradients, and rounding could hide a difference.
        """
        slopes = [loop.gradient_and_value(partial(_single_loss, loop, one), theta)[0] for one in samples.singles[-2:]]
        return random_unit(theta, SEED) + torch.stack([unit_along(x) for x in slopes]).sum(0)

    def same_losses(self, found: Tensor) -> bool:
        """Tells whether losses are those of the definition, up to the order of operations."""
        if found.shape != self.losses.shape:
            return False
        return bool(((found - self.losses).abs() <= self.rounding.of_losses(self.losses)).all())

    def same_slopes(self, found: Tensor) -> bool:
        """Tells whether slopes are those of the backward pass, up to the order of operations."""
        return bool(((found - self.slopes).abs() <= self.rounding.of_slopes(self.scales)).all())

    def same_sum(self, found: Tensor) -> bool:
        """Tells whether a slope is that of the sum of the losses, up to the order of operations."""
        return bool((found - self.slopes.sum()).abs() <= self.rounding.of_slopes(self.scales).sum())

    def same_mean(self, value: Tensor, slope: Tensor) -> bool:
        """Tells whether a loss and its slope are those of the mean of the samples, up to the order of operations."""
        allowed = self.rounding.of_losses(self.losses).mean(), self.rounding.of_slopes(self.scales).mean()
        return bool((value - self.losses.mean()).abs() <= allowed[0]) and bool(
            (slope - self.slopes.mean()).abs() <= allowed[1]
        )


def choose_path(losses: FunctionalLosses, loader: DataLoader[Batch]) -> Choice:
    """Chooses the fastest way to differentiate the losses that agrees with the definition on drawn samples.

    Raises:
        InputError: The loss of a sample alone cannot be computed, is not finite, or is not the same at two calls.
    """
    with undisturbed(), scoring(losses.module), without_slow_rules():
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
                if self._summed():
                    return Choice(self._along(path, self._vmapped()))
        whole = self.samples.batched and self._whole_is_mean()
        return Choice(self._along(Path.LOOP, False, whole), True, whole)

    @property
    def _splittable(self) -> bool:
        """Whether the first dimension of a batch counts its samples, so that it can be cut into parts."""
        samples = self.samples
        if not all(x.layout is torch.strided and not x.is_nested for x in tensors_of(without_ids(samples.batch))):
            return False  # no transform takes sparse or nested tensors
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
        loop, one = self.losses.one_by_one(), self.samples.singles[0]
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
        loop = self.losses.one_by_one()

        def step() -> Tensor:
            slope, value = loop.gradient_and_value(lambda at: loop.step_loss(at, self.samples.batch), self.theta)
            return torch.stack([value, slope @ self.reference.direction])

        found = self._attempt(step)
        return found is not None and self.reference.same_mean(*found)


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
    loop, theta = losses.one_by_one(), losses.theta()
    eps, v = torch.finfo(theta.dtype).eps, reference.direction
    step = eps ** (1 / 3) * (float(theta.norm()) or 1.0) / float(v.norm())
    with recording(), torch.no_grad():
        ends = [
            torch.stack([loop.single_loss(theta + sign * step * v, recordable(one)) for one in samples.singles])
            for sign in (1, -1)
        ]
    difference = (ends[0] - ends[1]) / (2 * step) - reference.slopes
    noise = 10 * eps * (reference.losses.abs().max() + reference.rounding.unit) / step
    apart = difference.square().mean().sqrt()
    return bool(apart > 0.05 * reference.slopes.square().mean().sqrt() + noise)


def _check_reference(losses: FunctionalLosses, samples: DrawnSamples, reference: Reference) -> None:
    if not bool(torch.isfinite(reference.losses).all()):
        k = int((~torch.isfinite(reference.losses)).nonzero()[0])
        if not all(bool(torch.isfinite(x).all()) for x in tensors_of(samples.singles[k])):
            return  # `TrainingData` refuses the sample itself
        raise InputError(not_finite(int(samples.ids[k]), float(reference.losses[k])))
    with recording(), torch.no_grad():
        loop = losses.one_by_one()
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
