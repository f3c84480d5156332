"""Loaders of the training data: in a fixed order for the sums of J, and with an id for every sample."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Sized
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, Subset

from ifloo.errors import InputError
from ifloo.objective.batches import Batch, Identified, MapDataset, fetch_samples
from ifloo.objective.id_rule import IdRule, IdSetting, Source, StatesIds, rows_of
from ifloo.objective.ids import decide
from ifloo.objective.sampling import refuse_partial
from ifloo.objective.seeded_draws import Collate, FixedReads, is_kept, scored_reads, training_reads, without_draws
from ifloo.objective.singles import Apart, CollateItems, CollateSingles, Singles

EQUAL_RATIOS = 1e-12  # relative difference of ratios that are the same


class _Positioned(Dataset[object]):
    """A dataset that returns samples together with their positions."""

    def __init__(self, dataset: MapDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, rows: Sequence[int]) -> tuple[object, list[int]]:
        return fetch_samples(self.dataset, rows), list(rows)


class _Collate:
    """The collate function for `_Positioned`: it keeps the ids beside the batch."""

    def __init__(self, collate: Collate, rule: IdRule) -> None:
        self.collate, self.id_rule = collate, rule

    def __call__(self, drawn: tuple[object, list[int]]) -> Identified:
        samples, rows = drawn
        batch = self.collate(samples)
        return Identified(batch, self.id_rule.of(batch, torch.tensor(rows)))


class FixedOrder(DataLoader[Batch]):
    """A loader of samples in the order of their dataset, which knows where their ids stand.

    Attributes:
        id_rule: The rule, as the first pass over all samples decides it.
    """

    id_rule = IdRule()


def identified(loader: DataLoader[Batch], ids: IdSetting | Source = "auto") -> DataLoader[Batch]:
    """Returns the loader itself if `sample_ids` finds the ids of its batches, or one that yields them as `Identified`.

    Args:
        loader: Training loader.
        ids: Setting, or the source of an `IdRule` that is decided already.
    """
    dataset = samples_behind(loader)
    if isinstance(dataset, _Positioned) or loader.batch_sampler is None:
        return loader
    collate: Collate = loader.collate_fn
    if ids in ("auto", "third"):
        rule, _ = decide(*unwrap_loader(loader), ids, loader.batch_size, loader.num_workers)
    else:
        rule = IdRule(ids, rows_of(own_dataset(loader)))
    if rule.source == "idx":
        return loader
    return DataLoader(
        _Positioned(dataset),
        batch_sampler=loader.batch_sampler,
        collate_fn=_Collate(collate, rule),  # type: ignore[arg-type]  # takes the result of `_Positioned.__getitems__`
        num_workers=loader.num_workers,
    )


class _CollateApart(_Collate):
    """The collate function for `_Positioned` that takes some samples apart, wherever a batch holds one of them."""

    def __init__(self, collate: Collate, rule: IdRule, apart: Tensor) -> None:
        super().__init__(collate, rule)
        self.apart = apart.cpu()

    def __call__(self, drawn: tuple[object, list[int]]) -> Identified:
        samples, rows = drawn
        decided = self.id_rule.source in ("auto", "positions")
        whole = None if decided else super().__call__(drawn)  # collated for the ids that its batch carries
        ids = self.id_rule.of_rows(torch.tensor(rows)) if whole is None else whole.positions
        alone = torch.isin(ids, self.apart)
        if not isinstance(samples, list) or not bool(alone.any()):
            return Identified(self.collate(samples), ids) if whole is None else whole
        single = [k for k, out in enumerate(alone.tolist()) if out]
        rest = [sample for sample, out in zip(samples, alone.tolist(), strict=True) if not out]
        singles = Singles(tuple(self.collate([samples[k]]) for k in single))
        parts = Apart(self.collate(rest) if rest else None, singles, ids[~alone], ids[alone])
        return Identified(parts, torch.cat([parts.rest_ids, parts.single_ids]))


def apart(loader: DataLoader[Batch], ids: Tensor) -> DataLoader[Batch]:
    """Returns a training loader whose batches hold the samples with these ids apart (`Apart`), with the same order."""
    dataset, rule = samples_behind(loader), rule_behind(loader)
    collate: Collate = loader.collate_fn
    if isinstance(dataset, _Positioned) and isinstance(collate, _Collate):
        dataset, collate = dataset.dataset, collate.collate
    return DataLoader(
        _Positioned(dataset),
        batch_sampler=loader.batch_sampler,
        collate_fn=_CollateApart(collate, rule, ids),  # type: ignore[arg-type]  # takes what `_Positioned` fetches
        num_workers=loader.num_workers,
    )


class _PositionedReads(_Positioned, FixedReads):
    """The same of a dataset whose reads are fixed."""

    def __init__(self, dataset: MapDataset) -> None:
        super().__init__(dataset)
        self.kept = is_kept(dataset)


class _CollateWeighted:
    """The collate function for `_Positioned` that puts the ids and factors of samples beside their batch."""

    def __init__(
        self, collate: Collate, ids: Tensor, factors: Tensor, in_batch: Tensor | None, dtype: torch.dtype
    ) -> None:
        self.collate, self.ids, self.factors = collate, ids, factors.to(dtype)
        # Within a part of equal ratios a training step weighs the samples as J does; those without weight are in none.
        ratios = factors.double() if in_batch is None else factors.double() / in_batch.where(in_batch > 0, 1.0)
        self.ratios = (ratios / ratios.max()).where(factors > 0, 0.0)

    def __call__(self, drawn: tuple[object, list[int]]) -> Identified:
        samples, rows = drawn
        return Identified(self._batch(samples, rows), self.ids[rows], self.factors[rows])

    def _batch(self, samples: object, rows: list[int]) -> Batch:
        if isinstance(self.collate, CollateSingles) and isinstance(samples, list):
            return self.collate.in_parts(samples, _equal(self.ratios[rows].tolist()))
        return self.collate(samples)


def _equal(ratios: Sequence[float]) -> list[tuple[int, ...]]:
    """Returns the positions of the numbers that are equal to rounding, for each number above 0; none if most differ.

    A step on a part costs more than one on a sample of it, so that many parts of few samples would be slower.
    """
    parts: list[list[int]] = []
    order = sorted((ratio, k) for k, ratio in enumerate(ratios) if ratio > 0)
    for position, (ratio, k) in enumerate(order):
        if position and ratio - order[position - 1][0] <= EQUAL_RATIOS * ratio:
            parts[-1].append(k)
        else:
            parts.append([k])
    return [tuple(sorted(part)) for part in parts] if len(parts) <= max(1, len(order) // 2) else []


def weighted(
    loader: DataLoader[Batch],
    ids: Tensor,
    factors: Tensor,
    in_batch: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> DataLoader[Batch]:
    """Returns a loader whose batches carry the factor n·c_i of each sample, for J = Σ_i c_i ℓ_i.

    Args:
        loader: Loader of the training data in order, such as that of a `TrainingData`.
        ids: Id of each sample, `[n]`.
        factors: Factor of each sample, `[n]`, float64: parts that a training step weighs alike are found from it.
        in_batch: Weight a_i of each sample in a training step on a batch, `[n]`; None if they are equal.
        dtype: Precision of the factors in batches.
    """
    collate = loader.collate_fn
    if isinstance(collate, CollateSingles) and in_batch is not None:
        collate = replace(collate, with_whole=True)  # a step on a batch has these weights: sums can be taken of it
    return DataLoader(
        _PositionedReads(samples_behind(loader)),
        batch_size=loader.batch_size,
        collate_fn=_CollateWeighted(collate, ids.cpu(), factors.cpu(), in_batch, dtype),  # type: ignore[arg-type]  # as `apart`
        num_workers=loader.num_workers,
    )


def rule_behind(loader: DataLoader[Batch]) -> IdRule:
    """Returns the rule that a loader carries, by `identified` or `sequential`; undecided for any other."""
    if isinstance(loader, StatesIds):
        return loader.id_rule
    if isinstance(loader.collate_fn, _Collate):
        return loader.collate_fn.id_rule
    if isinstance(loader.collate_fn, _CollateWeighted):
        return IdRule("positions", loader.collate_fn.ids)
    return IdRule("auto", rows_of(own_dataset(loader)))


class _Separately(FixedReads):
    """A dataset that returns its samples one by one, each in the form that the user's collate function takes."""

    def __init__(self, dataset: MapDataset) -> None:
        self.dataset, self.kept = dataset, is_kept(dataset)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, rows: Sequence[int]) -> list[object]:
        return [fetch_samples(self.dataset, [i]) for i in rows]


def separately(loader: DataLoader[Batch], with_whole: bool) -> DataLoader[Batch]:
    """Returns a loader of `Singles`: each sample as the batch of one that the user's dataset and collate function make.

    Args:
        loader: Training loader.
        with_whole: Whether the samples of each batch are also collated into one.
    """
    dataset, collate = unwrap_loader(loader)
    batched = loader.batch_sampler is not None
    singles = FixedOrder(
        _Separately(dataset),
        batch_size=loader.batch_size or 1,
        collate_fn=CollateSingles(collate, with_whole and batched),
        num_workers=0 if is_kept(dataset) else loader.num_workers,
    )
    singles.id_rule = rule_behind(loader)
    return singles


def collated_whole(loader: DataLoader[Batch], rows: Tensor) -> Batch | None:
    """Returns rows of a loader of `Singles` in one batch of the user's collate function; None if it makes none."""
    dataset, collate = samples_behind(loader), loader.collate_fn
    if isinstance(collate, _CollateWeighted) and isinstance(dataset, _Positioned):
        dataset, collate = dataset.dataset, collate.collate
    if not isinstance(collate, CollateSingles):
        return None
    whole = replace(collate, with_whole=True)(fetch_samples(dataset, rows.tolist())).whole  # type: ignore[arg-type]
    return None if isinstance(whole, Singles) else whole  # each sample is a batch already


def unwrap_loader(loader: DataLoader[Batch]) -> tuple[MapDataset, Collate]:
    """Returns dataset and collate function of a loader as scores read them, without the wrappers of `identified`.

    An augmented sample is read under a seed of its own (`SeededDraws`), so that each read gives the same draw.
    """
    dataset, collate = samples_behind(loader), loader.collate_fn
    if isinstance(dataset, _Positioned) and isinstance(collate, _Collate):
        dataset, collate = dataset.dataset, collate.collate
    if loader.batch_sampler is None:  # of batch_size=None
        collate = CollateItems(collate)
    return scored_reads(dataset, collate)


def first_draw_reads(loader: DataLoader[Batch]) -> tuple[MapDataset, Collate]:
    """Returns what `unwrap_loader` does, of the first draw alone where samples have several."""
    return without_draws(*unwrap_loader(loader))


def training_dataset(loader: DataLoader[Batch]) -> MapDataset:
    """Returns the dataset of a loader as training reads it, with its augmentation.

    Raises:
        InputError: The dataset has no length or no samples by position.
    """
    samples_behind(loader)
    dataset = own_dataset(loader)
    assert isinstance(dataset, MapDataset)
    return dataset


def own_dataset(loader: DataLoader[Batch]) -> object:
    """Returns the user's own dataset, of any kind, behind a loader."""
    dataset: object = loader.dataset
    return training_reads(dataset.dataset if isinstance(dataset, _Positioned) else dataset)


def with_dataset(
    loader: DataLoader[Batch],
    dataset: MapDataset,
    collate: Collate | None = None,
    order: Iterable[object] | None = None,
) -> DataLoader[Batch]:
    """Returns a loader with the settings of another one, over other samples of the same number.

    Args:
        loader: The other loader.
        dataset: Samples.
        collate: Collate function; None: that of the other loader.
        order: Sampler of batches, or of samples for a loader of `batch_size=None`; None: that of the other loader.
    """
    batches = loader.batch_sampler
    own = loader.sampler if batches is None else batches
    drawn = own if order is None else order
    return DataLoader(
        dataset,  # type: ignore[arg-type]  # typed as Dataset; anything with a length and items works
        **({"batch_size": None, "sampler": drawn} if batches is None else {"batch_sampler": drawn}),
        collate_fn=loader.collate_fn if collate is None else collate,
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=loader.generator,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
    )


def sample_count(loader: DataLoader[Batch]) -> int:
    """Returns n, the number of samples in the dataset of a loader.

    Raises:
        InputError: The dataset has no length or no samples by position.
    """
    return len(samples_behind(loader))


def samples_at_once(loader: DataLoader[Batch]) -> int | None:
    """Returns the number of samples of a batch; None where the loader states none."""
    batches = loader.batch_sampler
    return batches.batch_size if isinstance(batches, BatchSampler) else loader.batch_size


def samples_behind(loader: DataLoader[Batch]) -> MapDataset:
    """Returns the dataset of a loader.

    Raises:
        InputError: The dataset has no length or no samples by position.
    """
    dataset: object = loader.dataset
    if not isinstance(dataset, IterableDataset) and isinstance(dataset, MapDataset):
        return dataset
    if isinstance(dataset, IterableDataset):
        what, remedy = "an IterableDataset", "Give a dataset whose __getitem__ returns the sample at a position."
    elif isinstance(dataset, Sized):
        what, remedy = "which has no __getitem__", "Let __getitem__ give the sample at a position."
    else:
        what, remedy = "which has no __len__", "Let __len__ give the number of its samples."
    raise InputError(
        "Attribution needs a map-style dataset (with __len__ and __getitem__); got "
        f"{type(dataset).__name__}, {what}.\n  {remedy}"
    )


def sequential(loader: DataLoader[Batch], size: int, shard: slice | None = None, ids: IdSetting = "auto") -> FixedOrder:
    """Returns a loader of the same dataset in its own order, each sample once, for scoring and the sums of J.

    Args:
        loader: Training loader.
        size: Number of samples per batch.
        shard: Positions of the samples to load, such as the share of one process; None for all.
        ids: Setting of the ids, for a loader that carries no rule.

    Raises:
        InputError: The dataset is iterable, so that its order and length are unknown; the sampler draws only part of
            the data or some of it twice, so that the fit has another objective; or the dataset is empty.
    """
    refuse_partial(loader)
    if sample_count(loader) == 0:
        raise InputError("The training data hold no sample.")
    dataset, collate = unwrap_loader(loader)
    rule, chosen = rule_behind(loader), dataset
    if rule.source == "auto":
        rule = IdRule(ids, rule.rows)
    if shard is not None:
        positions = range(*shard.indices(len(dataset)))
        rule, chosen = rule.part(positions), Subset(dataset, positions)  # type: ignore[arg-type]
    fixed = FixedOrder(
        chosen,  # type: ignore[arg-type]  # typed as Dataset; anything with a length and items works
        batch_size=max(1, min(size, len(chosen))),
        shuffle=False,
        collate_fn=collate,
        num_workers=0 if is_kept(dataset) else loader.num_workers,
    )
    fixed.id_rule = rule
    return fixed
