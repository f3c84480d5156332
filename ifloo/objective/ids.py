"""Sample ids: those of a data set and of a batch of queries, and the positions of ids among those of the training data."""

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


def decide(
    dataset: MapDataset,
    collate: Callable[..., object],
    source: IdSetting | Source = "auto",
    size: int | None = 1,
    workers: int = 0,
) -> tuple[IdRule, Int[Tensor, " n"]]:
    """Decides where the ids of a data set stand, and returns them; reads all samples only if the first carries ids.

    Args:
        dataset: Data set.
        collate: Function that makes a batch of its samples.
        source: Setting, or the source that is decided already.
        size: Number of samples that are collated together; None: one.
        workers: Number of loading processes.

    Raises:
        InputError: The setting asks for the third item, which is not one unique whole number per sample.
    """
    n, rule = len(dataset), IdRule(source, rows_of(dataset))
    by_position = IdRule("positions", rule.rows)
    if source == "auto" and n:
        first = _at(dataset, collate, 0)
        if not _carries(first):
            if _differs(first, by_position, 0) or (
                n > 1 and _differs(_at(dataset, collate, n - 1), by_position, n - 1)
            ):
                note(THIRD_IGNORED)
            source = "positions"
    if source == "positions" or not n:
        return by_position, by_position.of_rows(torch.arange(n))
    reader = IdReader(rule)
    loader: DataLoader[Batch] = DataLoader(
        dataset,  # type: ignore[arg-type]  # typed as Dataset; anything with a length and items works
        size or 1,
        collate_fn=collate,
        num_workers=workers,
    )
    for batch in loader:
        reader.add(batch, batch_size(batch))
        if not reader.undecided:
            return by_position, by_position.of_rows(torch.arange(n))
    return reader.decided()


def _at(dataset: MapDataset, collate: Callable[..., object], position: int) -> Batch:
    return collate(fetch_samples(dataset, [position]))


def _carries(batch: Batch) -> bool:
    return carried_ids(batch, batch_size(batch)) is not None


def _differs(batch: Batch, rule: IdRule, position: int) -> bool:
    """Whether the third item of a batch of one could be taken for an id, and is not its position."""
    found = third_ids(batch, batch_size(batch))
    return found is not None and found.tolist() != rule.of_rows(torch.tensor([position])).tolist()


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
