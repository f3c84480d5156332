"""Methods of attribution under one interface: a trained model and queries in, scores in units of ∂L_t/∂w_i out."""

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
    """What a method may look at.

    Attributes:
        objective: J(θ; 1) over all n training samples.
        theta: θ̂, `[p]`, where the training ended.
        run: How it was trained; None where that was not recorded.
    """

    objective: Objective
    theta: Float[Tensor, " p"]
    run: RecordedRun | None = None


class MethodScores(Scores):
    """The former result of a method: `Scores` from one residual of each query, and steps and status of all of them.

    Methods return `Scores`; this constructor keeps methods working that were written before they did.
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
        """Makes scores whose queries carry no ids: their positions stand for them.

        Raises:
            InputError: a status that `Status` does not have.
        """
        m, certificate = len(value), None
        if residual is not None:
            took = torch.full((m,), steps, dtype=torch.int64)
            ended = (_status(status),) * m
            certificate = Certificate(residual, undamped_residual, None, None, took, ended, curves, damping)
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
    """A way to score training samples; its settings are the fields of the class."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Of the folder of its results, and in verdicts; most classes give it as a class variable."""

    @property
    def needs_run(self) -> bool:
        """Whether the training run must have been recorded."""
        return False

    @abstractmethod
    def scores(self, trained: TrainedModel, queries: Batch, tick: OnProgress = no_progress) -> Scores:
        """Scores of all n training samples against each of the m queries; `tick(done, total)` tells how far it is.

        Raises:
            InputError: the method needs something that this model or run does not have; the text says what.
            WorkError: a number that cannot be trusted.
        """
