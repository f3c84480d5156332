"""Test samples that a user gives, in any of the usual forms, as one batch."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Number

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ifloo.objective import Batch, sequential
from ifloo.objective.batches import batch_size, fetch_samples, map_tensors, tensors_of
from ifloo.objective.loaders import unwrap_loader


def query_batch(queries: Batch | Dataset[Batch] | DataLoader[Batch], count: int, train: DataLoader[Batch]) -> Batch:
    """Returns the test samples as one batch on the host; those of a data set are collated as training samples are.

    Args:
        queries: A batch, a data set (a list of samples is one), a single sample, or a DataLoader.
        count: Number of samples taken from a data set or DataLoader.
        train: Training loader; a batch has the form that its collate function makes.

    Raises:
        InputError: There is no sample.
    """
    batch: Batch = queries
    if not isinstance(queries, DataLoader):
        data = _as_data_set(queries, train)
        queries = data if data is None else _loader_of(data, train)
    if queries is not None:
        batch = next(iter(sequential(queries, count)))
    batch_size(batch)
    return map_tensors(lambda x: x.detach().cpu(), batch)


def _loader_of(data: object, train: DataLoader[Batch]) -> DataLoader[Batch]:
    # Whatever has a length and items serves as a dataset.
    return DataLoader(data, collate_fn=unwrap_loader(train)[1])  # type: ignore[arg-type]


def _as_data_set(queries: object, train: DataLoader[Batch]) -> object | None:
    """Returns the queries as a data set; None if they are a batch.

    A list may be either: of tensors for the model, or of samples for the collate function. The training data tell which.
    """
    sample, batch = _forms(train)
    if _same_form(queries, batch):
        return None
    if _same_form(queries, sample):
        return [queries]
    if isinstance(queries, (list, tuple)) and queries and _same_form(queries[0], sample):
        return list(queries)
    return None if isinstance(queries, (Tensor, Mapping, list, tuple)) else queries


def _forms(train: DataLoader[Batch]) -> tuple[object, Batch]:
    """Returns the first training sample, and the batch that the collate function makes of it."""
    dataset, collate = unwrap_loader(train)
    sample = dataset[0]
    if train.batch_sampler is None:  # each item is a batch already
        return sample, collate(sample)
    return sample, collate(fetch_samples(dataset, [0]))


def _same_form(value: object, like: object) -> bool:
    """Tells whether two values have tensors of the same numbers of dimensions in the same structure."""
    if isinstance(like, Tensor):
        return isinstance(value, Tensor) and value.ndim == like.ndim
    if isinstance(like, Mapping):
        return (
            isinstance(value, Mapping)
            and value.keys() == like.keys()
            and all(_same_form(value[key], item) for key, item in like.items())
        )
    if isinstance(like, (list, tuple)):
        if not isinstance(value, (list, tuple)):
            return False
        if next(tensors_of([value, like]), None) is None:  # one value a sample or a token, of any number
            return True
        return len(value) == len(like) and all(_same_form(x, y) for x, y in zip(value, like, strict=True))
    if isinstance(like, Number):
        return isinstance(value, Number)
    return type(value) is type(like)
