"""Cosine similarity of gradients: their directions compared, regardless of their lengths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ifloo.attribution.method import Method, TrainedModel
from ifloo.attribution.products import gradient_chunks, query_gradients
from ifloo.attribution.scores import Scores
from ifloo.objective.batches import Batch, concatenate_chunks
from ifloo.objective.functional import scoring
from ifloo.objective.ids import query_ids
from ifloo.progress import OnProgress, no_progress

BYTES_AT_ONCE = 64 << 20  # memory for the training gradients formed at a time


@dataclass(frozen=True)
class GradientCosine(Method):
    """−cos(∇L_t(θ̂), ∇ℓ_i(θ̂)), 0 where either gradient is 0.

    The score is dimensionless, between −1 and 1: a ranking, not an effect in nats. Samples of large loss do not
    outweigh the others. Lengths require the gradients themselves, which are formed a few at a time and not kept.

    Source: Charpiat et al. 2019 (Input similarity from the neural network perspective), the normalised kernel of
    gradients, here of the losses.
    """

    name: ClassVar[str] = "gradient_cosine"
    uses_curvature: ClassVar[bool] = False

    def scores(self, trained: TrainedModel, queries: Batch, tick: OnProgress = no_progress) -> Scores:
        objective, theta = trained.objective, trained.theta
        queries = objective.losses.in_form(queries)
        size = max(1, BYTES_AT_ONCE // (theta.numel() * theta.element_size()))
        with scoring(objective.losses.module):
            directions = _unit(query_gradients(objective, theta, queries))
            chunks = (-directions @ _unit(gradients).T for gradients in gradient_chunks(objective, theta, size))
            value = concatenate_chunks(chunks, objective.n, tick)
        return Scores(value, objective.data.ids, query_ids(queries), factors=objective.factors)


def _unit(gradients: Float[Tensor, "k p"]) -> Float[Tensor, "k p"]:
    """Divides each row by its length; a row of zeros stays zero."""
    lengths = gradients.norm(dim=1, keepdim=True)
    return gradients / torch.where(lengths > 0, lengths, 1.0)
