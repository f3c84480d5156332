"""Rounding of losses and slopes, measured, so that no tolerance is an absolute number.

A loss that is small because numbers cancel, as that of a sample that is fitted well, is right to roundings of those
numbers and not of itself. Two measures tell their size:

  1. Response: how far a loss moves when each weight moves by one rounding. Two orders of the same operations differ by
     about as much.
  2. Unit: the size of a loss whose weights are permuted within each tensor, which fit nothing and have the same norms.
     It bounds the first where the loss is random or depends on a state, which would pass for a large response. Where
     a loss has no value there, as that of a covariance, weights of the same signs and zeros take their place.

A loss of 1e-12 nats is then compared as sharply as one of 1e12.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from ifloo.objective.batches import Batch, batch_size, slice_batch
from ifloo.objective.functional import FunctionalLosses
from ifloo.objective.out_of_memory import is_out_of_memory
from ifloo.objective.randomness import undisturbed
from ifloo.objective.seeded_draws import seed_by
from ifloo.params import ParamSpace

log = logging.getLogger(__name__)
_Change: TypeAlias = Callable[[Tensor, torch.Generator], Tensor]  # (a weight, random numbers) -> the weight moved
SEED = 0
ADDED = 1e3  # roundings of a number, or of its unit, by which it may differ from itself in another order of operations
RESPONSES = 30.0  # responses to one rounding of the weights by which two orders of operations may differ
# Roundings of the unit that are always allowed: sums near a larger number may all round to the same. The error of a
# probability, and so of a slope, is that of the logits, which are larger than it.
LEAST_OF_LOSS, LEAST_OF_SLOPE = 4.0, 50.0
PROBED = 4  # samples that are measured
STRETCH = 0.1  # largest relative change of a weight that keeps its sign
MOST = 1 << 27  # entries of all weights up to which those that are not attributed are moved too


@dataclass(frozen=True)
class Rounding:
    """Differences that are allowed beside `ADDED` roundings of a number itself.

    Attributes:
        loss: Difference of a loss.
        slope: Difference of a slope along a direction; zero where none was measured.
        unit: Unit of a loss.
    """

    loss: float
    slope: float
    unit: float

    @classmethod
    def of(
        cls,
        losses: FunctionalLosses,
        theta: Float[Tensor, " p"],
        batch: Batch,
        direction: Float[Tensor, " p"] | None = None,
    ) -> Rounding:
        """Measures the first samples of a batch.

        Args:
            losses: Losses.
            theta: Weights θ, `[p]`.
            batch: Samples.
            direction: Direction v of slopes; None for losses alone.
        """
        few = slice_batch(batch, slice(0, min(PROBED, batch_size(batch))))
        space = _all_weights(losses)
        named: Mapping[str, Tensor] = dict(losses.module.named_parameters()) | losses.space.unflatten(theta)
        full = {name: named[name].detach() for name in space.names}
        wide = losses.restricted(space)

        def at(change: _Change) -> _Values:
            draw = torch.Generator().manual_seed(SEED)
            moved = space.flatten({name: change(x, draw) for name, x in full.items()})
            with undisturbed():
                seed_by(b"rounding")
                return _values(wide, losses, moved, few, direction)

        own = at(lambda x, _: x)
        moved, unfit = _first_defined(at, (_rounded,), own), _first_defined(at, (_permuted, _stretched), own)
        eps, units = (
            torch.finfo(theta.dtype).eps,
            [_largest(torch.cat(pair).abs()) for pair in zip(own, unfit, strict=True)],
        )
        loss, slope = (_largest((one - other).abs()) for one, other in zip(own[:2], moved[:2], strict=True))
        return cls(
            _between(loss, LEAST_OF_LOSS, eps * units[0]), _between(slope, LEAST_OF_SLOPE, eps * units[2]), units[0]
        )

    def of_losses(self, losses: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        """Returns by how much losses that differ only in the order of operations may differ."""
        return ADDED * torch.finfo(losses.dtype).eps * losses.abs() + self.loss

    def of_slopes(self, scales: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        """Returns the same of slopes, whose largest values are `scales`."""
        return ADDED * torch.finfo(scales.dtype).eps * scales + self.slope


def _between(response: float, least: float, unit: float) -> float:
    return min(max(RESPONSES * response, least * unit), ADDED * unit)


class _Values(NamedTuple):
    """Losses of a few samples, their slopes, and the largest that the slopes can be."""

    losses: Tensor
    slopes: Tensor
    scales: Tensor


def _values(
    wide: FunctionalLosses, losses: FunctionalLosses, at: Tensor, few: Batch, direction: Tensor | None
) -> _Values:
    if direction is None:
        with torch.no_grad():
            found = wide.sample_losses(at, few)
            return _Values(found, torch.zeros_like(found), torch.zeros_like(found))
    values, slopes, norms = [], [], []
    for k in range(batch_size(few)):
        one = slice_batch(few, slice(k, k + 1))
        wide_slope, value = wide.gradient_and_value(partial(_sum, wide, one), at)
        slope = losses.space.flatten(wide.space.unflatten(wide_slope))
        values.append(value)
        slopes.append(slope @ direction)
        norms.append(slope.norm())
    return _Values(torch.stack(values), torch.stack(slopes), torch.stack(norms) * direction.norm())


def _first_defined(at: Callable[[_Change], _Values], changes: Sequence[_Change], own: _Values) -> _Values:
    """Returns the values after the first change at which the user's code gives a number; `own` if it never does."""
    for change in changes:
        try:
            found = at(change)
        except Exception as error:  # weights may have a domain: a scale is positive, a covariance positive definite
            if is_out_of_memory(error):
                raise
            log.info("the size of a loss is not measured at other weights: %s", error)
            continue
        if bool(torch.isfinite(found.losses).any()):
            return found
    return own


def _sum(losses: FunctionalLosses, batch: Batch, theta: Tensor) -> Tensor:
    return losses.sample_losses(theta, batch).sum()


def _largest(x: Tensor) -> float:
    """Returns the largest finite entry."""
    finite = x[torch.isfinite(x)]
    return float(finite.max()) if len(finite) else 0.0


def _rounded(x: Tensor, draw: torch.Generator) -> Tensor:
    signs = torch.randint(0, 2, x.shape, generator=draw, dtype=torch.int8) * 2 - 1
    return x * (1 + signs.to(x) * torch.finfo(x.dtype).eps)


def _permuted(x: Tensor, draw: torch.Generator) -> Tensor:
    return x.reshape(-1)[torch.randperm(x.numel(), generator=draw).to(x.device)].reshape(x.shape)


def _stretched(x: Tensor, draw: torch.Generator) -> Tensor:
    return x * (1 + STRETCH * torch.rand(x.shape, generator=draw).to(x))


def _all_weights(losses: FunctionalLosses) -> ParamSpace:
    own = losses.space
    named = {n: p for n, p in losses.module.named_parameters() if (p.dtype, p.device) == (own.dtype, own.device)}
    if sum(p.numel() for p in named.values()) > MOST or not named.keys() >= set(own.names):
        return own
    return ParamSpace(tuple(named), tuple(p.shape for p in named.values()), own.dtype, own.device)
