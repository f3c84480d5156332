"""One-step training: the change of the test losses after one gradient step on each single sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import vmap

from ifloo.attribution.method import Method, TrainedModel
from ifloo.attribution.products import gradient_chunks
from ifloo.attribution.recorded import HOW_TO_RECORD, RecordedRun, training_time
from ifloo.attribution.scores import Scores
from ifloo.errors import InputError
from ifloo.objective.batches import Batch, batch_size, concatenate_chunks, slice_batch, to_device
from ifloo.objective.functional import FunctionalLosses, scoring
from ifloo.objective.ids import query_ids
from ifloo.progress import OnProgress, no_progress

MOST_AT_ONCE = 256  # weight vectors evaluated together; more of them are not faster
PAIRS_AT_ONCE = 4096  # pairs of a weight vector and a query in one forward pass


@dataclass(frozen=True)
class OneStep(Method):
    """L_t(θ̂ − η ∇ℓ_i(θ̂)/n) − L_t(θ̂): effect of one more unit of weight on sample i in one step of gradient descent.

    The unit is nats per unit weight, for a training that consists of this one step. To first order the score is η times
    `GradientDot`; higher orders are included exactly. Since it is a difference of losses, changes below 1e-7 L_t are
    rounding in float32.

    Attributes:
        rate: η; None takes the training time of the recorded run (`training_time`). Divided by n, that is the share of
            one sample in all steps of the run, so that the one step is as long as the run's steps on this sample.
        max_bytes: Memory for the weight vectors evaluated together and their gradients, bytes.
    """

    rate: float | None = None
    max_bytes: int = 64 << 20

    name: ClassVar[str] = "one_step"

    def __post_init__(self) -> None:
        """Checks the settings.

        Raises:
            InputError: If the rate is not positive and finite, or max_bytes is below 1.
        """
        if self.rate is not None and not 0 < self.rate < float("inf"):
            raise InputError(f"OneStep needs a finite rate > 0 (or null), got {self.rate}.")
        if self.max_bytes < 1:
            raise InputError(f"OneStep needs max_bytes >= 1, got {self.max_bytes}.")

    @property
    def needs_run(self) -> bool:
        return self.rate is None

    def scores(self, trained: TrainedModel, queries: Batch, tick: OnProgress = no_progress) -> Scores:
        objective, theta = trained.objective, trained.theta
        losses, step = objective.losses, self._rate(trained.run) / objective.n
        at_once = min(MOST_AT_ONCE, max(1, self.max_bytes // (2 * theta.numel() * theta.element_size())))
        queries = losses.in_form(to_device(queries, theta.device, theta.dtype))
        with torch.no_grad(), scoring(losses.module):
            before = _losses_at(losses, theta.unsqueeze(0), queries)
            chunks = (
                (_losses_at(losses, theta - step * gradients, queries) - before).T
                for gradients in gradient_chunks(objective, theta, at_once)
            )
            value = concatenate_chunks(chunks, objective.n, tick)
        return Scores(value, objective.data.ids, query_ids(queries), factors=objective.factors)

    def _rate(self, run: RecordedRun | None) -> float:
        if self.rate is not None:
            return self.rate
        if run is None:
            raise InputError(
                "OneStep takes its step from the learning rates of the training run, and this model comes without one."
                "\n  Give rate, such as the learning rate times the number of steps. "
                f"{HOW_TO_RECORD}, to have it computed."
            )
        return training_time(run)


def _losses_at(losses: FunctionalLosses, thetas: Float[Tensor, "g p"], queries: Batch) -> Float[Tensor, "g m"]:
    """Computes L_t of each query at each of g weight vectors."""
    size = max(1, PAIRS_AT_ONCE // len(thetas))
    blocks = [slice_batch(queries, slice(i, i + size)) for i in range(0, batch_size(queries), size)]
    return torch.cat([vmap(lambda theta, b=block: losses.sample_losses(theta, b))(thetas) for block in blocks], 1)
