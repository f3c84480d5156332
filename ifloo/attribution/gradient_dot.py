"""Products of gradients: what the influence function becomes with the identity in place of the curvature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ifloo.attribution.engine import QUERY_BLOCK
from ifloo.attribution.method import Method, MethodScores, Trained
from ifloo.attribution.products import ForwardProducts
from ifloo.objective.batches import Batch, batch_size, rows
from ifloo.objective.objective import Objective
from ifloo.progress import OnProgress, no_progress


@dataclass(frozen=True)
class GradientDot(Method):
    """−(1/n) ∇L_t(θ̂)·∇ℓ_i(θ̂): the change of L_t along one step of gradient descent on sample i.

    In nats per unit weight where every direction has a curvature of 1 nat per squared parameter; elsewhere a ranking,
    whose size says nothing of an effect.

    Source: Charpiat et al. 2019 (Input similarity from the neural network perspective), the kernel of gradients
    before normalisation, here of the losses.
    """

    name: ClassVar[str] = "gradient_dot"

    def scores(self, trained: Trained, queries: Batch, tick: OnProgress = no_progress) -> MethodScores:
        objective = trained.objective
        dots = gradient_dots(objective, trained.theta, queries, tick)
        return MethodScores(dots / -objective.n, objective.data.ids)


def gradient_dots(
    objective: Objective, theta: Float[Tensor, " p"], queries: Batch, tick: OnProgress = no_progress
) -> Float[Tensor, "m n"]:
    """∇L_t(θ)·∇ℓ_i(θ) of all n training samples by forward-mode derivatives: only the queries' gradients are formed."""
    by = ForwardProducts(objective, theta)
    directions, parts, done = query_gradients(objective, theta, queries), [], 0
    for chunk in by.chunks():
        parts.append(by.of(chunk, directions))
        done += parts[-1].shape[1]
        tick(done, objective.n)
    return torch.cat(parts, 1)


def query_gradients(objective: Objective, theta: Float[Tensor, " p"], queries: Batch) -> Float[Tensor, "m p"]:
    """∇L_t(θ) of each query, a block of them at a time through the model."""
    by = ForwardProducts(objective, theta)
    starts = range(0, batch_size(queries), QUERY_BLOCK)
    return torch.cat([by.query_gradients(rows(queries, slice(i, i + QUERY_BLOCK))) for i in starts])
