"""Test samples that a user gives, in any of the usual forms, as one batch."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Number

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ifloo.errors import InputError
from ifloo.objective import Batch, sequential
from ifloo.objective.batches import batch_size, concatenate, fetch_samples, slice_batch
from ifloo.objective.forms import map_tensors, tensors_of
from ifloo.objective.functional import FunctionalLosses, Path
from ifloo.objective.layout import Layout
from ifloo.objective.loaders import separately, unwrap_loader
from ifloo.objective.singles import Singles


def query_batch(queries: Batch | Dataset[Batch] | DataLoader[Batch], count: int, train: DataLoader[Batch]) -> Singles:
    """Returns the test samples on the host: one by one, and as one batch; both are collated as training samples are.

    Args:
        queries: A batch, a data set (a list of samples is one), a single sample, or a DataLoader.
        count: Number of samples taken from a data set or DataLoader.
        train: Training loader; a batch has the form that its collate function makes.

    Raises:
        InputError: There is no sample.
    """
    loader = queries if isinstance(queries, DataLoader) else None
    if loader is None and (data := _as_data_set(queries, train)) is not None:
        loader = _loader_of(data, train)
    if loader is not None:
        sequential(loader, count)  # checks that its samples have positions
        found = next(iter(sequential(separately(loader, with_whole=True), count)))
    else:
        found = _separated(queries, train)
    moved = map_tensors(lambda x: x.detach().cpu(), found)
    assert isinstance(moved, Singles)
    return moved


def in_form_of(losses: FunctionalLosses, queries: Singles) -> Batch:
    """Returns the test samples in the form in which losses are taken: one by one, or as one batch."""
    if losses.path is Path.LOOP:
        return Singles(queries.batches)
    return concatenate(queries.batches) if queries.whole is None else queries.whole


def _separated(batch: Batch, train: DataLoader[Batch]) -> Singles:
    """Divides a batch into batches of one sample.

    Raises:
        InputError: There is no tensor with dimensions, or the samples cannot be separated.
    """
    if train.batch_sampler is None:  # each item of the data set is a batch, and counts as one sample
        return Singles((batch,), batch)
    b = batch_size(batch)
    sample, like = _forms(train)
    layout = Layout.of(unwrap_loader(train)[1], sample) if _same_form(batch, like) else None
    if layout is not None and (parts := layout.split(batch)) is not None:
        return Singles(parts, batch)
    if any(len(x) != b for x in tensors_of(batch) if x.ndim):
        raise InputError(
            f"The samples of a batch ({type(batch).__name__}) cannot be separated: its tensors differ in their first "
            "dimension.\n  Give them as a data set, or as a list of samples: each is then collated alone."
        )
    return Singles(tuple(slice_batch(batch, slice(k, k + 1)) for k in range(b)), batch)


def _loader_of(data: object, train: DataLoader[Batch]) -> DataLoader[Batch]:
    # Whatever has a length and items serves as a dataset.
    return DataLoader(data, collate_fn=unwrap_loader(train)[1])  # type: ignore[arg-type]


def _as_data_set(queries: object, train: DataLoader[Batch]) -> object | None:
    """Returns the queries as a data set; None if they are a batch.

    A list may be either: of tensors for the model, or of samples for the collate function, as the training data show.
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
