"""Samplers that deal their draws out to the processes of a `ddp` fit.

Lightning puts a sampler of the user's into a `DistributedSampler` whose data are the draws of that sampler. The author
of a fit may also give a `DistributedSampler` of a class of his own, or put one into a batch sampler.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from torch.utils.data import DistributedSampler

from ifloo.objective.batch_samplers import SamplerBatches


@runtime_checkable
class DrawsOfSampler(Protocol):
    """Data of Lightning's wrappers: what another sampler draws."""

    _sampler: Iterable[object]


def dealt_by(sampler: object) -> Iterable[object] | None:
    """Returns the sampler whose draws a wrapper of Lightning's deals out; None for any other sampler."""
    if isinstance(sampler, DistributedSampler) and isinstance(sampler.dataset, DrawsOfSampler):
        return sampler.dataset._sampler
    return None


def own_sampler(sampler: object) -> object:
    """Returns a sampler as its author gave it, without Lightning's wrapper."""
    inner = dealt_by(sampler)
    return sampler if inner is None else inner


def dealt_like(sampler: object, inner: Iterable[object]) -> Iterable[object]:
    """Returns another sampler, dealt out as Lightning deals one out; by itself where it does not."""
    if not isinstance(sampler, DistributedSampler) or dealt_by(sampler) is None:
        return inner
    found = copy.copy(sampler)
    found.dataset = copy.copy(sampler.dataset)
    assert isinstance(found.dataset, DrawsOfSampler)
    found.dataset._sampler = inner
    return found


def processes_of(sampler: object) -> int:
    """Returns the number of processes to which a sampler, or that within a batch sampler, deals its draws out."""
    dealing = _dealing(sampler)
    return 1 if dealing is None else dealing.num_replicas


def take_rank(sampler: object, rank: int) -> None:
    """Lets a copy of a sampler draw the share of a process."""
    dealing = _dealing(sampler)
    if dealing is None or dealing.rank == rank:
        return
    dealing.rank = rank
    if dealing.total_size % dealing.num_replicas:  # of Lightning's sampler that does not pad: the shares differ
        dealing.num_samples = len(range(rank, dealing.total_size, dealing.num_replicas))


def _dealing(sampler: object) -> DistributedSampler[int] | None:
    within = sampler.sampler if isinstance(sampler, SamplerBatches) else sampler
    return within if isinstance(within, DistributedSampler) else None
