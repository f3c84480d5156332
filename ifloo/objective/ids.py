"""Sample ids: of a data set, of a batch of queries, and their positions among those of the training data."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import DataLoader

from ifloo.errors import InputError
from ifloo.objective.batches import Batch, Identified, MapDataset, batch_size, fetch_samples, sample_ids
from ifloo.objective.id_rule import (
    THIRD_IGNORED,
    IdReader,
    IdRule,
    IdSetting,
    Source,
    carried_ids,
    note,
    rows_of,
    third_ids,
)
from ifloo.objective.seeded_draws import is_kept, training_reads


def decide(
    dataset: MapDataset,
    collate: Callable[..., object],
    source: IdSetting | Source = "auto",
    size: int | None = 1,
    workers: int = 0,
    noted: bool = True,
) -> tuple[IdRule, Int[Tensor, " n"]]:
    """Decides where the ids of a data set stand, and returns them; reads all samples only if the first carries ids.

    Args:
        dataset: Data set.
        collate: Function that makes a batch of its samples.
        source: Setting, or the source that is decided already.
        size: Number of samples that are collated together; None: one.
        workers: Number of loading processes.
        noted: Whether an integer third item that is no id is noted in the log.

    Raises:
        InputError: The setting asks for the third item, which is not one unique whole number per sample.
    """
    n, rule = len(dataset), IdRule(source, rows_of(training_reads(dataset)))
    by_position = IdRule("positions", rule.rows)
    if source == "auto" and n:
        first = _at(dataset, collate, 0)
        if carried_ids(first, batch_size(first)) is None:
            if noted and _third_is_data(dataset, collate, first, by_position):
                note(THIRD_IGNORED, training_reads(dataset))
            source = "positions"
    if source == "positions" or not n:
        return by_position, by_position.of_rows(torch.arange(n))
    reader = IdReader(rule)
    loader: DataLoader[Batch] = DataLoader(
        dataset,  # type: ignore[arg-type]  # typed as Dataset; anything with a length and items works
        size or 1,
        collate_fn=collate,
        num_workers=0 if is_kept(dataset) else workers,
    )
    for batch in loader:
        reader.add(batch, batch_size(batch))
        if not reader.undecided:
            return by_position, by_position.of_rows(torch.arange(n))
    return reader.decided()


def _at(dataset: MapDataset, collate: Callable[..., object], position: int) -> Batch:
    return collate(fetch_samples(dataset, [position]))


def _third_is_data(dataset: MapDataset, collate: Callable[..., object], first: Batch, rule: IdRule) -> bool:
    """Tells whether a third item could be taken for an id, and is not the position of the first or the last sample."""
    if third_ids(first, batch_size(first)) is None:
        return False
    last = len(dataset) - 1
    return any(
        third_ids(one, 1) is None or third_ids(one, 1) != rule.of_rows(torch.tensor([k]))
        for k, one in ((0, first), (last, _at(dataset, collate, last)))
    )


def identified_queries(queries: Batch, rule: IdRule) -> Batch:
    """Returns a batch of queries with the ids by this rule beside it; as it is if `query_ids` finds these ids in it.

    Raises:
        InputError: The rule asks for the third item, which is not one unique whole number per query.
    """
    if isinstance(queries, Identified):
        return queries
    reader = IdReader(rule)
    reader.add(queries, batch_size(queries))
    ids = reader.decided()[1]
    return queries if torch.equal(ids, query_ids(queries)) else Identified(queries, ids)


def query_ids(queries: Batch) -> Int[Tensor, " m"]:
    """Returns the ids of a batch of queries, on the host; positions in the batch if it carries no unique ids."""
    ids, b = sample_ids(queries), batch_size(queries)
    if ids is None or (not isinstance(queries, Identified) and len(torch.unique(ids)) != b):
        return torch.arange(b)
    return ids.cpu()


def positions_of(train_ids: Int[Tensor, " n"], ids: Sequence[int]) -> Int[Tensor, " g"]:
    """Finds the positions of these ids among those of the training data, which need not be in order.

    Raises:
        InputError: An id is not one of the training data.
    """
    requested = torch.as_tensor(list(ids), dtype=torch.int64)
    order = torch.argsort(train_ids)
    nearest = torch.searchsorted(train_ids[order], requested).clamp(max=len(order) - 1)
    positions = order[nearest]
    if len(unknown := requested[train_ids[positions] != requested]):
        raise InputError(
            f"Ids {unknown.tolist()[:5]} are not among the {len(train_ids)} training ids.\n"
            "  Give ids of training samples."
        )
    return positions
