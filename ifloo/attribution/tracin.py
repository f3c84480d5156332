"""TracIn: dot products of gradients along the training run, weighted by the learning rates of its steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ifloo.attribution.method import Method, TrainedModel
from ifloo.attribution.products import gradient_dots
from ifloo.attribution.recorded import refuse_no_checkpoint, require_run, segments
from ifloo.attribution.scores import Scores
from ifloo.objective.batches import Batch, batch_size
from ifloo.objective.ids import query_ids
from ifloo.progress import OnProgress, no_progress, part_of


@dataclass(frozen=True)
class TracIn(Method):
    """−Σ_c η_ci ∇L_t(θ_c)·∇ℓ_i(θ_c), η_ci = learning rate over batch size, summed over the visits to i in segment c.

    The unit is nats per unit weight for plain SGD, to first order in the learning rates: the immediate change of L_t in
    the steps whose batches held sample i, without the effect of later steps on it. Momentum and Adam's scaling are not
    included.

    Source: Pruthi et al. 2020, arXiv:2002.08484, TracInCP. Visits are counted here, where the paper assumes one visit
    for each segment, and the sign is reversed: proponents are negative.

    Attributes:
        checkpoints: Largest number of saved states to use, evenly spread over the run; None uses all that were saved
            after a step. The visits between two states used are counted at the later one.
    """

    checkpoints: int | None = 10

    name: ClassVar[str] = "tracin"
    uses_curvature: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Checks the settings.

        Raises:
            InputError: If the number of checkpoints is below 1.
        """
        refuse_no_checkpoint(self.checkpoints)

    @property
    def needs_run(self) -> bool:
        return True

    def scores(self, trained: TrainedModel, queries: Batch, tick: OnProgress = no_progress) -> Scores:
        run, objective = require_run(trained.run, "TracIn"), trained.objective
        ids, parts, queries = objective.data.ids, segments(run, self.checkpoints), objective.losses.in_form(queries)
        value = torch.zeros(batch_size(queries), objective.n, dtype=trained.theta.dtype, device=trained.theta.device)
        for k, (first, last) in enumerate(parts):
            theta = run.state(last).theta.to(trained.theta)
            dots = gradient_dots(objective, theta, queries, part_of(tick, k, len(parts)))
            value -= run.visits(ids, first, last).to(dots) * dots
        return Scores(value, ids, query_ids(queries), factors=objective.factors)
