"""Test samples in the form that the losses of a model are computed in."""

from __future__ import annotations

from dataclasses import dataclass

from ifloo.data.protocol import QueryBatches, SingleQueries
from ifloo.objective import Batch, FunctionalLosses
from ifloo.objective.functional import Path


@dataclass(frozen=True)
class QuerySamples:
    """Test samples of a data module, which are read when the form of the losses is known.

    Attributes:
        datamodule: Data module with the test samples.
        ids: Ids of the samples.
    """

    datamodule: QueryBatches
    ids: tuple[int, ...]


def samples_for(losses: FunctionalLosses, queries: Batch) -> Batch:
    """Returns test samples as the losses take them: as one batch, or each as the batch of one of its dataset.

    Args:
        losses: Losses of the model.
        queries: `QuerySamples`, or a batch.

    Raises:
        InputError: A test id does not exist, or samples in one batch cannot be taken apart.
    """
    if not isinstance(queries, QuerySamples):
        return losses.in_form(queries)
    data, ids = queries.datamodule, list(queries.ids)
    if losses.path is Path.LOOP and isinstance(data, SingleQueries):
        return data.test_singles(ids)
    return losses.in_form(data.test_batch(ids))
