"""Methods of attribution under one interface: a trained model and queries in, scores in units of ∂L_t/∂w_i out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from ifloo.attribution.recorded import RecordedRun
from ifloo.objective.batches import Batch
from ifloo.objective.objective import Objective
from ifloo.progress import OnProgress, no_progress


@dataclass(frozen=True)
class Trained:
    """What a method may look at.

    Attributes:
        objective: J(θ; 1) over all n training samples.
        theta: θ̂, `[p]`, where the training ended.
        run: how it was trained; None where nobody recorded it.
    """

    objective: Objective
    theta: Float[Tensor, " p"]
    run: RecordedRun | None = None


@dataclass(frozen=True)
class MethodScores:
    """Scores of one method for all n training samples.

    Attributes:
        value: `[m, n]`, negative = helpful: removing i (w_i to 0) is predicted to change L_t by −value[t, i].
        train_ids: `[n]`.
        residual: `[m]`, relative, of what the method solved or replayed; None where it did neither.
        steps: of the solve or the replay; 0 where there was none.
        status: how it ended, in a word or two.
        damping: δ added to a curvature, where there was one.
        undamped_residual: `[m]`, of the system without it; None where nothing was solved.
        curves: one of each query, as those of a `Certificate`; none where nothing was solved.
    """

    value: Float[Tensor, "m n"]
    train_ids: Int[Tensor, " n"]
    residual: Float[Tensor, " m"] | None = None
    steps: int = 0
    status: str = "no solve"
    damping: float = 0.0
    undamped_residual: Float[Tensor, " m"] | None = None
    curves: tuple[Float[Tensor, "s 2"], ...] = ()


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
    def scores(self, trained: Trained, queries: Batch, tick: OnProgress = no_progress) -> MethodScores:
        """Scores of all n training samples against each of the m queries; `tick(done, total)` tells how far it is.

        Raises:
            InputError: the method needs something that this model or run does not have; the text says what.
            WorkError: a number that cannot be trusted.
        """
