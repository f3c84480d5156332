"""TracIn: products of gradients along the training run, each with the learning rate that was paid for it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch

from ifloo.attribution.gradient_dot import gradient_dots
from ifloo.attribution.method import Method, MethodScores, Trained
from ifloo.attribution.recorded import RecordedRun
from ifloo.errors import InputError
from ifloo.objective.batches import Batch, batch_size
from ifloo.progress import OnProgress, no_progress

HOW_TO_RECORD = (
    "Record the training: the ids and the learning rate of every step and a state now and then, as `RecordedRun` "
    "holds them"
)


@dataclass(frozen=True)
class TracIn(Method):
    """−Σ_c η_ci ∇L_t(θ_c)·∇ℓ_i(θ_c), η_ci = learning rate over batch size, summed over the visits to i in segment c.

    Nats per unit weight for plain SGD, to first order in the learning rates: what the steps that saw sample i did to
    L_t there and then, without what later steps made of it. Momentum and Adam's scaling are not in it.

    Source: Pruthi et al. 2020, arXiv:2002.08484, TracInCP, with the visits counted where the paper takes one for each
    segment, and the sign turned: proponents are negative here.

    Attributes:
        checkpoints: states looked at, at most, evenly spread over those saved; None: all that were saved after a step.
            A segment without one of its own is counted with the next.
    """

    checkpoints: int | None = 10

    name: ClassVar[str] = "tracin"

    def __post_init__(self) -> None:
        """Checks the settings.

        Raises:
            InputError: checkpoints below 1.
        """
        _refuse_none(self.checkpoints)

    @property
    def needs_run(self) -> bool:
        return True

    def scores(self, trained: Trained, queries: Batch, tick: OnProgress = no_progress) -> MethodScores:
        run, objective = recorded(trained, "TracIn"), trained.objective
        ids, parts = objective.data.ids, segments(run, self.checkpoints)
        value = torch.zeros(batch_size(queries), objective.n, dtype=trained.theta.dtype, device=trained.theta.device)
        for k, (first, last) in enumerate(parts):
            theta = run.state(last).theta.to(trained.theta)
            dots = gradient_dots(objective, theta, queries, part_of(tick, k, len(parts)))
            value -= run.visits(ids, first, last).to(dots) * dots
        return MethodScores(value, ids)


def recorded(trained: Trained, method: str) -> RecordedRun:
    """The run behind a model.

    Raises:
        InputError: nobody recorded it.
    """
    if trained.run is None:
        raise InputError(
            f"{method} follows the training run, and this model comes without one.\n"
            f"  {HOW_TO_RECORD}; or use a method that looks at the final weights alone, such as GradientDot."
        )
    return trained.run


def segments(run: RecordedRun, most: int | None) -> list[tuple[int, int]]:
    """The run cut into at most so many stretches of steps, each from one saved state to another, none left out.

    Raises:
        InputError: into none.
    """
    _refuse_none(most)
    there = len(run.saved) - 1
    count = there if most is None else min(there, most)
    ends = [run.saved[(k * there) // count] for k in range(count + 1)] if count else []
    return list(pairwise(ends))


def part_of(tick: OnProgress, number: int, count: int) -> OnProgress:
    """Tells `tick` of one of several equal parts of the work."""
    return lambda done, total: tick(number * total + done, count * total)


def _refuse_none(checkpoints: int | None) -> None:
    if checkpoints is not None and checkpoints < 1:
        raise InputError(f"TracIn needs checkpoints >= 1 (or null, for all that were saved), got {checkpoints}.")
