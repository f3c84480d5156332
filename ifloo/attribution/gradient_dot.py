"""Dot products of gradients: the influence function with the identity in place of the curvature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ifloo.attribution.method import Method, TrainedModel
from ifloo.attribution.products import gradient_dots
from ifloo.attribution.scores import Scores
from ifloo.objective.batches import Batch
from ifloo.objective.ids import query_ids
from ifloo.progress import OnProgress, no_progress


@dataclass(frozen=True)
class GradientDot(Method):
    """−(1/n) ∇L_t(θ̂)·∇ℓ_i(θ̂): the change of L_t along one step of gradient descent on sample i.

    The score is in nats per unit weight if every direction has a curvature of 1 nat per squared parameter. Otherwise it
    is a ranking, and its size does not predict the size of an effect.

    Source: Charpiat et al. 2019 (Input similarity from the neural network perspective), the kernel of gradients
    before normalisation, here of the losses.
    """

    name: ClassVar[str] = "gradient_dot"
    uses_curvature: ClassVar[bool] = False

    def scores(self, trained: TrainedModel, queries: Batch, tick: OnProgress = no_progress) -> Scores:
        objective = trained.objective
        queries = objective.losses.in_form(queries)
        dots = gradient_dots(objective, trained.theta, queries, tick)
        return Scores(dots / -objective.n, objective.data.ids, query_ids(queries), factors=objective.factors)
