"""Batches of any form: their size and sample ids, and how to move, slice, concatenate and cache them.

Supported are dicts, `(x, y)`, `(x, y, idx)`, and nestings of these. `id_rule` tells where the ids of samples stand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ifloo.errors import InputError
from ifloo.objective.forms import (
    Batch,
    dense,
    listed,
    moved,
    opaque_parts,
    parts_of,
    tensors_of,
    with_items,
    with_parts,
)
from ifloo.objective.id_rule import IdReader, IdRule, StatesIds, carried_ids
from ifloo.objective.singles import Drawn, Singles
from ifloo.progress import OnProgress, no_progress


class Identified(NamedTuple):
    """A batch from a loader together with the ids of its samples.

    Attributes:
        batch: Batch as the loader yields it.
        positions: Id of each sample, [b]: its position in the dataset unless an `IdRule` found another.
        factors: n·c_i, the factor of each loss in J = Σ_i c_i ℓ_i, [b]; None if J is the plain mean.
    """

    batch: Batch
    positions: Int[Tensor, " b"]
    factors: Float[Tensor, " b"] | None = None


def without_ids(batch: Batch) -> Any:  # the type that the methods of the model declare
    """Returns the batch as its loader yields it and the model expects it."""
    return batch.batch if isinstance(batch, Identified) else batch


def to_device(batch: Batch, device: torch.device, dtype: torch.dtype, non_blocking: bool = False) -> Batch:
    """Moves a batch to a device and casts its floating-point tensors; ids and labels keep their dtype."""
    return moved(batch, device, dtype, non_blocking)


def to_module(batch: Batch, module: nn.Module) -> Batch:
    """Moves a batch to the device and precision of a module's weights."""
    weight = next(module.parameters())
    return to_device(batch, weight.device, weight.dtype)


def batch_size(batch: Batch) -> int:
    """Returns b, the number of samples: the length of the first tensor that has dimensions.

    Raises:
        InputError: The batch holds no such tensor.
    """
    if isinstance(inner := without_ids(batch), Singles):
        return len(inner)
    for tensor in tensors_of(inner, within_opaque=False):
        if tensor.ndim:
            return tensor.shape[0]
    raise InputError(f"A batch must hold at least one tensor [b, ...]; got {type(batch).__name__} without any.")


def sample_ids(batch: Batch) -> Int[Tensor, " b"] | None:
    """Returns the ids beside a batch, or else under its key of ids; None if there are none."""
    if isinstance(batch, Identified):
        return batch.positions
    return carried_ids(batch, batch_size(batch)) if isinstance(batch, (Mapping, Singles, Drawn)) else None


def slice_batch(batch: Batch, index: slice | Int[Tensor, " b"]) -> Batch:
    """Returns some samples of a batch; with a slice, its tensors are views.

    Raises:
        InputError: A part of the batch is opaque.
    """
    if isinstance(batch, Singles):
        return batch.pick(index)
    if isinstance(batch, Identified):
        factors = None if batch.factors is None else batch.factors[index]
        return Identified(slice_batch(batch.batch, index), batch.positions[index], factors)
    if parts := opaque_parts(batch):
        raise InputError(
            f"A batch holds a {type(parts[0]).__name__}, which has no tensor attributes and cannot be split into "
            "samples.\n  Give the samples as a data set: each is then collated alone."
        )
    return _sliced(batch, index, batch_size(batch))


def _sliced(part: object, index: slice | Int[Tensor, " b"], b: int) -> object:
    if isinstance(part, Tensor):
        return part[index] if part.ndim else part
    if listed(part, b):
        return with_items(part, part[index] if isinstance(index, slice) else [part[i] for i in index.tolist()])
    return with_parts(part, lambda _, value: _sliced(value, index, b))


def concatenate(batches: Sequence[Any]) -> Batch:
    """Concatenates batches of the same form."""
    first = batches[0]
    if isinstance(first, Singles):
        return Singles.joined(batches)
    return _concatenated(batches, [batch_size(batch) for batch in batches])


def _concatenated(parts: Sequence[Any], sizes: Sequence[int]) -> object:
    first = parts[0]
    if all(listed(part, b) for part, b in zip(parts, sizes, strict=True)):
        return with_items(first, [item for part in parts for item in part])
    if isinstance(first, Tensor):
        return torch.cat(list(parts)) if first.ndim else first
    others = [dict(parts_of(part)) for part in parts]
    return with_parts(first, lambda key, _: _concatenated([one[key] for one in others], sizes))


def joined_batch(singles: Singles) -> Batch | None:
    """Returns samples as one batch; None where their tensors have other shapes than one another."""
    if singles.whole is not None:
        return singles.whole
    return concatenate(singles.batches) if singles.batches and _same_widths(singles.batches) else None


def concatenate_chunks(chunks: Iterable[Tensor], n: int, tick: OnProgress = no_progress) -> Tensor:
    """Joins chunks of samples along their last dimension; `tick` receives the number of samples done and n."""
    parts, done = [], 0
    for chunk in chunks:
        parts.append(chunk)
        done += chunk.shape[-1]
        tick(done, n)
    return torch.cat(parts, -1)


def times_factors(losses: Tensor, batch: Batch) -> Tensor:
    """Returns the losses times the factors n·c_i of their samples in J, if the batch has factors."""
    factors = batch.factors if isinstance(batch, Identified) else None
    if factors is None:
        return losses
    return losses * (factors.clone() if factors.is_inference() else factors)  # a backward pass may need them


def without_factors(batch: Batch) -> Batch:
    """Returns the batch without the factors of its samples, so that its losses are ℓ_i and not n·c_i ℓ_i."""
    return batch._replace(factors=None) if isinstance(batch, Identified) else batch


@runtime_checkable
class MapDataset(Protocol):
    """A map-style dataset in the sense of torch: it has a length, and samples by position."""

    def __len__(self) -> int: ...

    def __getitem__(self, position: int, /) -> object: ...


@runtime_checkable
class BatchedDataset(Protocol):
    """A dataset that returns many samples in one call, in the form that its collate function takes."""

    def __getitems__(self, positions: Sequence[int], /) -> object: ...


def fetch_samples(dataset: MapDataset, positions: Sequence[int]) -> object:
    """Returns the samples at these positions for a collate function, in one call if the dataset supports it."""
    if isinstance(dataset, BatchedDataset):
        return dataset.__getitems__(positions)
    return [dataset[i] for i in positions]


@runtime_checkable
class SampleSource(Protocol):
    """The samples that a sum runs over, with their ids."""

    @property
    def n(self) -> int:
        """Number of samples."""
        ...

    @property
    def ids(self) -> Int[Tensor, " n"]:
        """Ids of the samples, in order."""
        ...

    def with_ids(self) -> Iterator[tuple[Int[Tensor, " b"], Batch]]:
        """Yields the ids of each batch and the batch."""
        ...


@dataclass(frozen=True)
class Subsample:
    """One batch of drawn samples: a sum over it, divided by its own n, estimates the mean over all data.

    Attributes:
        ids: Ids of the samples.
        batch: The drawn samples.
    """

    ids: Int[Tensor, " b"]
    batch: Batch

    @property
    def n(self) -> int:
        return len(self.ids)

    def with_ids(self) -> Iterator[tuple[Int[Tensor, " b"], Batch]]:
        yield self.ids, self.batch


class TrainingData:
    """All n training samples as a fixed sequence of batches, for repeated passes.

    Batches are cached on the device, in the dtype of the parameters, if all of them fit into `cache_bytes`. Otherwise
    each pass reads the loader again.

    Attributes:
        n: Number of samples.
        ids: Ids of the samples in order, `[n]` int64.
        id_rule: Place where the batches carry these ids, if they do.
        device: Device of the batches.
        dtype: Dtype of the floating-point tensors in the batches.
        factors: n·c_i of each sample in J = Σ_i c_i ℓ_i, which the batches carry; None if J is the plain mean.
        in_batch: Relative weight a_i of each sample in the loss of a batch, float64; None if they are equal.
    """

    def __init__(
        self,
        loader: Iterable[Batch],
        device: torch.device,
        dtype: torch.dtype,
        cache_bytes: int = 4 << 30,
        accepts: Callable[[Batch], bool] | None = None,
    ) -> None:
        """Reads the data once.

        Args:
            loader: Re-iterable loader with a fixed order (see `sequential`).
            device: Device that the batches are moved to.
            dtype: Dtype that floating-point tensors are cast to.
            cache_bytes: Maximum size of the cached batches, bytes.
            accepts: Function that tells whether a batch with NaN or infinity can be used; None: no such batch can be.

        Raises:
            InputError: The data hold no sample, an id that occurs twice, or NaN or infinity that is not accepted.
        """
        reader = IdReader(loader.id_rule if isinstance(loader, StatesIds) else IdRule())
        self.loader, self.device, self.dtype, self.accepts = loader, device, dtype, accepts
        self.factors: Float[Tensor, " n"] | None = None
        self.in_batch: Float[Tensor, " n"] | None = None
        self._cache: list[Batch] | None = []
        used = start = 0
        for position, raw in enumerate(loader):
            batch = self._prepare(raw)
            b = batch_size(batch)
            reader.add(without_ids(batch), b, batch.positions if isinstance(batch, Identified) else None)
            start += b
            _refuse_non_finite(batch, position, accepts)
            used += sum(x.numel() * x.element_size() for x in tensors_of(batch))
            if self._cache is not None:
                self._cache = [*self._cache, batch] if used <= cache_bytes else None
        if not start:
            raise InputError("The training data hold no sample.")
        self.n = start
        self.id_rule, self.ids = reader.decided()
        if isinstance(loader, StatesIds):
            loader.id_rule = self.id_rule

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._cache) if self._cache is not None else map(self._prepare, self.loader)

    def with_ids(self) -> Iterator[tuple[Int[Tensor, " b"], Batch]]:
        """Yields the ids of each batch and the batch."""
        start = 0
        for batch in self:
            b = batch_size(batch)
            ids = self.ids[start : start + b]
            if self._cache is None:
                found = batch.positions if isinstance(batch, Identified) else self.id_rule.carried(batch, b)
                _refuse_other_order(found, ids)
            yield ids.to(self.device), batch
            start += b

    def draw(self, size: int, generator: torch.Generator) -> Subsample:
        """Draws `size` samples uniformly, with replacement."""
        positions = torch.randint(self.n, (size,), generator=generator)
        return Subsample(self.ids[positions].to(self.device), self.sample(positions))

    def sample(self, positions: Int[Tensor, " b"]) -> Batch:
        """Returns the samples at these positions, in this order, as one batch (positions may repeat)."""
        if self._cache is None:
            return self._collated(positions)
        lengths = torch.tensor([batch_size(b) for b in self._cache])
        ends = lengths.cumsum(0)
        batch_index = torch.searchsorted(ends, positions.cpu(), right=True)
        offset = positions.cpu() - (ends - lengths)[batch_index]
        order = torch.argsort(batch_index, stable=True)
        parts = [
            slice_batch(self._cache[int(i)], offset[batch_index == i].to(self.device))
            for i in torch.unique(batch_index)
        ]
        if not _same_widths(parts):  # texts padded batch by batch
            return self._collated(positions)
        return slice_batch(concatenate(parts), torch.argsort(order).to(self.device))

    def _collated(self, positions: Int[Tensor, " b"]) -> Batch:
        """Reads samples again and collates them by the loader's own function."""
        dataset, collate = self.loader.dataset, self.loader.collate_fn  # type: ignore[attr-defined]
        return self._prepare(collate(fetch_samples(dataset, positions.tolist())))

    def _prepare(self, batch: Batch) -> Batch:
        return to_device(batch, self.device, self.dtype, non_blocking=True)


def _same_widths(parts: Sequence[Batch]) -> bool:
    """Tells whether the tensors of all parts have the same shapes but for their first dimension, or are singles."""
    if isinstance(without_ids(parts[0]), Singles):
        return True
    widths = {tuple(tuple(x.shape[1:]) for x in tensors_of(part)) for part in parts}
    return len(widths) == 1


def _refuse_non_finite(batch: Batch, position: int, accepts: Callable[[Batch], bool] | None) -> None:
    for tensor in tensors_of(batch):
        entries = dense(tensor)
        if tensor.is_floating_point() and not torch.isfinite(entries).all():
            if accepts is not None and accepts(batch):
                return
            bad = int((~torch.isfinite(entries)).reshape(len(tensor) if tensor.ndim else 1, -1).any(1).nonzero()[0])
            raise InputError(
                f"The training data hold NaN or infinity: batch {position}, row {bad}, a tensor of shape "
                f"{list(tensor.shape)}.\n  Clean the data; no score can be computed from them."
            )


def _refuse_other_order(found: Tensor | None, expected: Tensor) -> None:
    if found is not None and not torch.equal(found.cpu(), expected):
        raise InputError(
            f"The training data came in another order than at the first pass: ids {found.tolist()[:5]} "
            f"instead of {expected.tolist()[:5]}.\n  Turn shuffling off; `sequential(loader, size)` gives a fixed "
            f"order."
        )
