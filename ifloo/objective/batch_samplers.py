"""Contract of batch samplers: the attributes of torch's `BatchSampler`, which other classes may have as well."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable
class SamplerBatches(Protocol):
    """Batch sampler that groups what another sampler draws."""

    @property
    def sampler(self) -> object: ...


@runtime_checkable
class EqualBatches(Protocol):
    """Batch sampler whose batches, except possibly the last, have the same number of samples."""

    @property
    def batch_size(self) -> int: ...
