"""The scores of one moment of a fit."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ifloo.attribution import Method, Scores
from ifloo.objective import Batch, Stationarity, sample_ids
from ifloo.objective.batches import batch_size


@dataclass(frozen=True)
class OwnRankings:
    """What each training sample does to its own loss, `[n]`, nats.

    Attributes:
        loss: ℓ_i.
        last_layer: self-influence through the last layer; None where the module has none.
    """

    loss: Tensor
    last_layer: Tensor | None


@dataclass(frozen=True)
class Snapshot:
    """Scores at the weights of one moment.

    Attributes:
        scores: of all n training samples.
        test_ids: of the m queries.
        method: that made them.
        parameters: patterns of those attributed, as the module's author knows them.
        stationarity: how far from a minimum over these parameters.
        own: self-influence, if asked for.
        data: SHA-256 of the training samples.
        dtype: precision of the scoring.
        weights: SHA-256 of the module's state.
        seconds: it took.
    """

    scores: Scores
    test_ids: tuple[int, ...]
    method: Method
    parameters: tuple[str, ...]
    stationarity: Stationarity
    own: OwnRankings | None
    data: str
    dtype: str
    weights: str = ""
    seconds: float = 0.0


def ids_of(queries: Batch) -> tuple[int, ...]:
    """The ids of test samples: their own, else their positions."""
    ids = sample_ids(queries)
    return tuple(range(batch_size(queries))) if ids is None else tuple(ids.tolist())
