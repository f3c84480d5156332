"""Interface of all attribution methods: from a trained model and queries to scores in units of ∂L_t/∂w_i."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ifloo.attribution.recorded import RecordedRun
from ifloo.attribution.scores import Certificate, Scores
from ifloo.errors import InputError
from ifloo.objective.batches import Batch
from ifloo.objective.objective import Objective
from ifloo.progress import OnProgress, no_progress
from ifloo.solvers import Status


@dataclass(frozen=True)
class TrainedModel:
    """Input of a method: the objective, the trained weights and, if recorded, the training run.

    Attributes:
        objective: J(θ; 1) over all n training samples.
        theta: Weights θ̂ at the end of training, `[p]`.
        run: Recorded training run; None if the training was not recorded.
    """

    objective: Objective
    theta: Float[Tensor, " p"]
    run: RecordedRun | None = None


class MethodScores(Scores):
    """Former result type of methods: `Scores` built from one residual per query and a common status and step count.

    New methods return `Scores`. This constructor keeps methods working that were written for the former type.
    """

    def __init__(
        self,
        value: Float[Tensor, "m n"],
        train_ids: Int[Tensor, " n"],
        residual: Float[Tensor, " m"] | None = None,
        steps: int = 0,
        status: str = "no solve",
        damping: float = 0.0,
        undamped_residual: Float[Tensor, " m"] | None = None,
        curves: tuple[Float[Tensor, "s 2"], ...] = (),
    ) -> None:
        """Builds scores whose query ids are the positions of the queries.

        Raises:
            InputError: If the status is not the value of a `Status`.
        """
        m, certificate = len(value), None
        if residual is not None:
            counts = torch.full((m,), steps, dtype=torch.int64)
            statuses = (_status(status),) * m
            certificate = Certificate(residual, undamped_residual, None, None, counts, statuses, curves, damping)
        super().__init__(value, train_ids, torch.arange(m), certificate)


def _status(text: str) -> Status:
    for status in Status:
        if status.value == text:
            return status
    raise InputError(
        f"A method ended with status {text!r}; expected one of {', '.join(repr(s.value) for s in Status)}.\n"
        "  Return Scores with a Certificate, whose status is one Status of each query."
    )


class Method(ABC):
    """Attribution method, which scores training samples; its settings are the fields of the class."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Name of the method in verdicts, and of the folder of its results; most classes set it as a class variable."""

    @property
    def needs_run(self) -> bool:
        """Whether the method needs the recorded training run."""
        return False

    @property
    def uses_curvature(self) -> bool:
        """Whether scores depend on second derivatives of the losses."""
        return True

    @abstractmethod
    def scores(self, trained: TrainedModel, queries: Batch, tick: OnProgress = no_progress) -> Scores:
        """Scores all n training samples for each of the m queries.

        Args:
            trained: Trained model.
            queries: Batch of m query samples.
            tick: Callback `tick(done, total)` that receives the progress.

        Returns:
            Scores, `[m, n]`, with their certificate if the method solves a system or replays a run.

        Raises:
            InputError: If the model or its run lacks something that the method needs; the message names it.
            WorkError: If a result cannot be trusted.
        """
