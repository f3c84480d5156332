"""Scores at one point of a fit."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ifloo.attribution import Method, Scores
from ifloo.objective import Batch, Stationarity, query_ids


@dataclass(frozen=True)
class OwnRankings:
    """Values that rank the training samples without a query, `[n]`, nats.

    Attributes:
        loss: Losses ℓ_i.
        last_layer: Self-influence through the last layer; None if the module has no such layer.
    """

    loss: Tensor
    last_layer: Tensor | None


@dataclass(frozen=True)
class Snapshot:
    """Scores at the weights of one point of a fit.

    Attributes:
        scores: Scores of all n training samples.
        test_ids: Ids of the m queries.
        method: Method of the scores.
        parameters: Patterns of the attributed parameters, in the names of the user's module.
        stationarity: |∇J| over these parameters, and the share of one sample.
        own: Rankings of the training samples by their own losses; None unless requested.
        data: SHA-256 of the training samples.
        dtype: Precision of the scoring.
        weights: SHA-256 of the module's state.
        seconds: Duration of the scoring, seconds.
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
    """Returns the ids of test samples: those in the batch, else their positions."""
    return tuple(query_ids(queries).tolist())
