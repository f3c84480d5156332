"""Batches, whatever their form: which samples they hold, how many, moved, cut and put together.

Understood: dicts, `(x, y)`, `(x, y, idx)`, and nestings of these. A sample's id is key `idx` or `sample_index` of a
dict, the third item of a tuple, else its position in the dataset.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor, nn

from ifloo.errors import InputError
from ifloo.progress import OnProgress, no_progress

# A dict, tuple or list of tensors, nested as the model likes: only the functions of this file look inside.
Batch: TypeAlias = object
ID_KEYS = ("idx", "sample_index")


class Identified(NamedTuple):
    """A batch as the loader made it, and the ids of its samples: their positions in the dataset."""

    batch: Batch
    positions: Int[Tensor, " b"]


def without_ids(batch: Batch) -> Any:  # of the model's own type, which its methods name
    """The batch as its loader made it, and a model expects it."""
    return batch.batch if isinstance(batch, Identified) else batch


@runtime_checkable
class _NamedTuple(Protocol):
    def _make(self, items: Iterable[object], /) -> tuple[object, ...]: ...


def with_items(like: Sequence[object], items: Iterable[object]) -> Sequence[object]:
    """A list, tuple or named tuple of the type of `like`, of other items."""
    return like._make(items) if isinstance(like, _NamedTuple) else type(like)(items)  # type: ignore[call-arg]


def map_tensors(function: Callable[[Tensor], object], batch: Batch) -> Batch:
    """The batch with `function` applied to each tensor; everything else is passed on."""
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, Mapping):
        return {k: map_tensors(function, v) for k, v in batch.items()}
    if isinstance(batch, (tuple, list)):
        return with_items(batch, (map_tensors(function, v) for v in batch))
    return batch


def to_device(batch: Batch, device: torch.device, dtype: torch.dtype, non_blocking: bool = False) -> Batch:
    """The batch on a device, its floating tensors in a dtype; ids and labels keep theirs."""
    return map_tensors(
        lambda x: x.to(device, dtype if x.is_floating_point() else None, non_blocking=non_blocking), batch
    )


def to_module(batch: Batch, module: nn.Module) -> Batch:
    """Moves a batch to the device and precision of a module's weights."""
    weight = next(module.parameters())
    return to_device(batch, weight.device, weight.dtype)


def tensors_of(batch: Batch) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from tensors_of(value)
    elif isinstance(batch, (tuple, list)):
        for value in batch:
            yield from tensors_of(value)


def batch_size(batch: Batch) -> int:
    """b: the length of the first tensor with dimensions.

    Raises:
        InputError: the batch holds no such tensor.
    """
    for tensor in tensors_of(batch):
        if tensor.ndim:
            return tensor.shape[0]
    raise InputError(f"A batch must hold at least one tensor [b, ...]; got {type(batch).__name__} without any.")


def sample_ids(batch: Batch) -> Int[Tensor, " b"] | None:
    """The ids a batch carries, or None where it carries none (then the position in the dataset is the id)."""
    if isinstance(batch, Identified):
        return batch.positions
    if isinstance(batch, Mapping):
        return next((batch[k].long() for k in ID_KEYS if k in batch), None)
    if isinstance(batch, (tuple, list)) and len(batch) == 3 and isinstance(batch[2], Tensor):
        ids = batch[2]
        return ids.long() if ids.ndim == 1 and not ids.is_floating_point() else None
    return None


def slice_batch(batch: Batch, index: slice | Int[Tensor, " b"]) -> Batch:
    """Some samples of a batch; a slice gives views."""
    return map_tensors(lambda x: x[index] if x.ndim else x, batch)


def concatenate(batches: Sequence[Any]) -> Batch:
    """One batch of several alike."""
    first = batches[0]
    if isinstance(first, Tensor):
        return torch.cat(list(batches)) if first.ndim else first
    if isinstance(first, Mapping):
        return {k: concatenate([b[k] for b in batches]) for k in first}
    if isinstance(first, (tuple, list)):
        return with_items(first, (concatenate(items) for items in zip(*batches, strict=True)))
    return first


def concatenate_chunks(chunks: Iterable[Tensor], n: int, tick: OnProgress = no_progress) -> Tensor:
    """Joins chunks of samples along their last dimension; `tick` gets how many of the n are done."""
    parts, done = [], 0
    for chunk in chunks:
        parts.append(chunk)
        done += chunk.shape[-1]
        tick(done, n)
    return torch.cat(parts, -1)


@runtime_checkable
class MapDataset(Protocol):
    """What torch calls a map-style dataset: a length, and samples by their positions."""

    def __len__(self) -> int: ...

    def __getitem__(self, position: int, /) -> object: ...


@runtime_checkable
class BatchedDataset(Protocol):
    """A dataset that gives many samples at once, in the form its collate function takes."""

    def __getitems__(self, positions: Sequence[int], /) -> object: ...


def fetch_samples(dataset: MapDataset, positions: Sequence[int]) -> object:
    """The samples at these positions as a collate function takes them; at once where the dataset can."""
    if isinstance(dataset, BatchedDataset):
        return dataset.__getitems__(positions)
    return [dataset[i] for i in positions]


@runtime_checkable
class SampleSource(Protocol):
    """n samples to sum over, with their ids."""

    @property
    def n(self) -> int: ...

    @property
    def ids(self) -> Int[Tensor, " n"]: ...

    def with_ids(self) -> Iterator[tuple[Int[Tensor, " b"], Batch]]: ...


@dataclass(frozen=True)
class Subsample:
    """One batch of samples standing for the whole: a sum over it, divided by its own n, estimates the full mean."""

    ids: Int[Tensor, " b"]
    batch: Batch

    @property
    def n(self) -> int:
        return len(self.ids)

    def with_ids(self) -> Iterator[tuple[Int[Tensor, " b"], Batch]]:
        yield self.ids, self.batch


class TrainingData:
    """All n training samples as a fixed sequence of batches, gone over again and again.

    Batches are kept in memory, on the device and in the dtype of the parameters, while they fit `cache_bytes`;
    beyond it the loader is read anew on each pass.

    Attributes:
        n: number of samples.
        ids: `[n]` int64, in order.
        device: where the batches come.
        dtype: of their floating tensors.
    """

    def __init__(
        self,
        loader: Iterable[Batch],
        device: torch.device,
        dtype: torch.dtype,
        cache_bytes: int = 4 << 30,
    ) -> None:
        """Reads the data once.

        Args:
            loader: re-iterable, in a fixed order (see `sequential`).
            device: where the batches are wanted.
            dtype: what floating tensors are cast to.
            cache_bytes: memory for batches kept.

        Raises:
            InputError: no sample, NaN or infinity in the data, an id that occurs twice.
        """
        self.loader, self.device, self.dtype = loader, device, dtype
        self._cache: list[Batch] | None = []
        ids, used, start = [], 0, 0
        for position, raw in enumerate(loader):
            batch = self._moved(raw)
            b = batch_size(batch)
            own = sample_ids(batch)
            ids.append(torch.arange(start, start + b) if own is None else own.cpu())
            start += b
            _refuse_non_finite(batch, position)
            used += sum(x.numel() * x.element_size() for x in tensors_of(batch))
            if self._cache is not None:
                self._cache = [*self._cache, batch] if used <= cache_bytes else None
        if not ids:
            raise InputError("The training data hold no sample.")
        self.n = start
        self.ids: Int[Tensor, " n"] = torch.cat(ids)
        if len(torch.unique(self.ids)) != self.n:
            raise InputError(_repeated_ids(self.ids))

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._cache) if self._cache is not None else map(self._moved, self.loader)

    def with_ids(self) -> Iterator[tuple[Int[Tensor, " b"], Batch]]:
        """Each batch with the ids of its samples."""
        start = 0
        for batch in self:
            b = batch_size(batch)
            ids = self.ids[start : start + b]
            if self._cache is None:
                _refuse_other_order(sample_ids(batch), ids)
            yield ids.to(self.device), batch
            start += b

    def draw(self, size: int, generator: torch.Generator) -> Subsample:
        """`size` samples drawn uniformly, with replacement."""
        positions = torch.randint(self.n, (size,), generator=generator)
        return Subsample(self.ids[positions].to(self.device), self.sample(positions))

    def sample(self, positions: Int[Tensor, " b"]) -> Batch:
        """The samples at these positions, in this order, as one batch (positions may repeat)."""
        if self._cache is None:
            dataset, collate = self.loader.dataset, self.loader.collate_fn  # type: ignore[attr-defined]
            return self._moved(collate(fetch_samples(dataset, positions.tolist())))
        lengths = torch.tensor([batch_size(b) for b in self._cache])
        ends = lengths.cumsum(0)
        which = torch.searchsorted(ends, positions.cpu(), right=True)
        offset = positions.cpu() - (ends - lengths)[which]
        order = torch.argsort(which, stable=True)
        parts = [slice_batch(self._cache[int(w)], offset[which == w].to(self.device)) for w in torch.unique(which)]
        return slice_batch(concatenate(parts), torch.argsort(order).to(self.device))

    def _moved(self, batch: Batch) -> Batch:
        return to_device(batch, self.device, self.dtype, non_blocking=True)


def _refuse_non_finite(batch: Batch, position: int) -> None:
    for tensor in tensors_of(batch):
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            bad = int((~torch.isfinite(tensor)).reshape(len(tensor) if tensor.ndim else 1, -1).any(1).nonzero()[0])
            raise InputError(
                f"The training data hold NaN or infinity: batch {position}, row {bad}, a tensor of shape "
                f"{list(tensor.shape)}.\n  Clean the data; no score can be computed from them."
            )


def _refuse_other_order(found: Tensor | None, expected: Tensor) -> None:
    if found is not None and not torch.equal(found.cpu(), expected):
        raise InputError(
            f"The training data came in another order than at the first pass: ids {found.tolist()[:5]} where "
            f"{expected.tolist()[:5]} stood.\n  Turn shuffling off; `sequential(loader, size)` gives a fixed order."
        )


def _repeated_ids(ids: Tensor) -> str:
    values, counts = torch.unique(ids, return_counts=True)
    twice = values[counts > 1]
    return (
        f"Sample ids must be unique; {len(twice)} occur more than once, the first is {int(twice[0])}.\n"
        "  Give each training sample its own id (key `idx` or `sample_index`, or the third item of the batch)."
    )
