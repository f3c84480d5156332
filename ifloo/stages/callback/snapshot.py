"""Scores at one point of a fit."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ifloo.attribution import Method, Scores
from ifloo.objective import Stationarity
from ifloo.objective.certificate import ObjectiveCertificate

LAST_LAYER = "last_layer"  # name of the default method


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
        certificate: Comparison of J with what was trained.
        notes: Sentences on what the scores are of, for the reader of the table.
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
    certificate: ObjectiveCertificate
    notes: tuple[str, ...] = ()
    weights: str = ""
    seconds: float = 0.0


def away_from_minimum(found: Stationarity) -> str:
    """Returns the note on scores by a curvature away from a minimum of J."""
    causes = "" if found.certificate is None else f" {found.certificate.causes_of_a_distance}"
    return (
        f"these weights are not at a minimum of J: |grad J| is {found.grad_norm / found.sample_share:.2g} times one "
        f"sample's share. The scores rank the training samples; they predict no refit.{causes}"
    )
