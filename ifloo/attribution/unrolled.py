"""The exact derivative of a test loss in the weight of each training sample, through the training run itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import grad, vjp, vmap

from ifloo.attribution.method import Method, TrainedModel
from ifloo.attribution.recorded import RecordedRun, State
from ifloo.attribution.scores import Certificate, Scores
from ifloo.errors import InputError, WorkError
from ifloo.gradients import sample_gradients
from ifloo.objective.batches import Batch, batch_size, to_device
from ifloo.objective.functional import FunctionalLosses, scoring
from ifloo.objective.ids import query_ids
from ifloo.objective.objective import Objective
from ifloo.progress import OnProgress, no_progress
from ifloo.solvers import Status

REPLAYED = {torch.float64: 1e-9, torch.float32: 1e-4}  # relative distance of a replayed state that is the recorded one


@dataclass(frozen=True)
class ReverseState:
    """How far back a reverse pass has come.

    Attributes:
        step: the adjoint is of the state after so many steps.
        theta: `[m, p]`, ∂L_t/∂θ of that state.
        moments: each `[m, p]`, ∂L_t/∂ of its moments.
        scores: `[m, n]`, what the steps since have added to ∂L_t/∂w_i.
        distance: the largest relative distance between a replayed state and the recorded one so far.
    """

    step: int
    theta: Float[Tensor, "m p"]
    moments: tuple[Float[Tensor, "m p"], ...]
    scores: Float[Tensor, "m n"]
    distance: float


@runtime_checkable
class ReverseCheckpoint(Protocol):
    """Where a reverse pass is kept between segments, so that a killed one goes on."""

    def load(self) -> ReverseState | None:
        """The last one kept; None: none."""

    def keep(self, reverse: ReverseState) -> None:
        """Keeps it in place of the last."""


class NoCheckpoint:
    """Keeps nothing."""

    def load(self) -> ReverseState | None:
        return None

    def keep(self, reverse: ReverseState) -> None:
        return None


@dataclass(frozen=True)
class Unrolled(Method):
    r"""s[t, i] = ∂L_t(θ_T)/∂w_i, θ_T the end of the recorded run z_{k+1} = step(z_k; w), z = (θ, moments).

    With the adjoint λ_T = (∇L_t(θ_T), 0), backwards λ_k = (∂z_{k+1}/∂z_k)ᵀ λ_{k+1} and
    s[t, i] = Σ_k (∂z_{k+1}/∂w_i)ᵀ λ_{k+1}: both by `vjp` of the step itself, whatever the optimizer. States come from
    the recorded ones, segment by segment; each segment must end where the recording did.

    Exact for the run as it was, converged or not: momentum, Adam, decoupled decay and schedules are part of the step.
    It predicts `zero_weight` removals, as n stays; cost about 3 gradients a step and query beside one replay.

    Source: Hara et al. 2019, arXiv:1906.08473 (SGD); Bae et al. 2024, arXiv:2405.12186, section 3 (unrolling).

    Attributes:
        tolerance: largest relative distance between replayed and recorded states; None: 1e-9 in float64, 1e-4 in
            float32 (order of additions).
    """

    tolerance: float | None = None
    name: ClassVar[str] = "unrolled"

    @property
    def needs_run(self) -> bool:
        return True

    def scores(self, trained: TrainedModel, queries: Batch, tick: OnProgress = no_progress) -> Scores:
        return self.resumed(trained, queries, NoCheckpoint(), tick)

    def resumed(
        self, trained: TrainedModel, queries: Batch, progress: ReverseCheckpoint, tick: OnProgress = no_progress
    ) -> Scores:
        """Scores, from where `progress` was kept.

        Raises:
            InputError: the run was not recorded, or parameters of it are left out.
            WorkError: the replay does not follow the recorded run.
        """
        fold = ReplayedRun.of(trained)
        with scoring(trained.objective.losses.module):
            reverse = progress.load() or self._start(trained, queries, fold)
            for first, last in reversed(list(pairwise(fold.run.saved))):
                if last <= reverse.step:
                    reverse = self._segment(fold, first, last, reverse, tick)
                    progress.keep(reverse)
        m = len(reverse.theta)
        certificate = Certificate(
            residual=torch.full((m,), reverse.distance, dtype=reverse.scores.dtype),
            undamped_residual=None,
            error_bound=None,
            repeat_error=None,
            steps=torch.full((m,), fold.run.steps),
            status=(Status.REPLAYED,) * m,
        )
        return Scores(reverse.scores, trained.objective.data.ids, query_ids(queries), certificate)

    def _start(self, trained: TrainedModel, queries: Batch, fold: ReplayedRun) -> ReverseState:
        end = fold.run.state(fold.run.steps)
        distance = _distance(end.theta, trained.theta)
        self._check(
            distance, fold.run.steps, "the recorded run ends elsewhere than the checkpoint", trained.theta.dtype
        )
        here = to_device(queries, trained.theta.device, trained.theta.dtype)
        adjoint = sample_gradients(trained.objective.losses, trained.theta, here)
        moments = tuple(torch.zeros_like(adjoint) for _ in end.moments)
        return ReverseState(
            fold.run.steps, adjoint, moments, adjoint.new_zeros(len(adjoint), trained.objective.n), distance
        )

    def _segment(
        self, fold: ReplayedRun, first: int, last: int, reverse: ReverseState, tick: OnProgress
    ) -> ReverseState:
        """Replays the steps first..last−1, then goes back over them."""
        batches = [fold.batch(k) for k in range(first, last)]
        states = [fold.run.state(first)]
        for k, batch in enumerate(batches, first):
            states.append(fold.step(states[-1], fold.ones(batch), batch, k))
        distance = _distance(states[-1].theta, fold.run.state(last).theta)
        self._check(distance, last, "the replayed training left the recorded one", states[-1].theta.dtype)
        adjoint, scores = (reverse.theta, reverse.moments), reverse.scores.clone()
        for k in reversed(range(first, last)):
            adjoint, added = fold.step_back(states[k - first], batches[k - first], k, adjoint)
            scores.index_add_(1, fold.columns(k).to(scores.device), added)
            tick(fold.run.steps - k, fold.run.steps)
        return ReverseState(first, *adjoint, scores, max(distance, reverse.distance))

    def _check(self, distance: float, step: int, what: str, dtype: torch.dtype) -> None:
        tolerance = REPLAYED.get(dtype, 1e-4) if self.tolerance is None else self.tolerance
        if not distance <= tolerance:  # NaN is no agreement either
            raise WorkError(
                f"{what[0].upper()}{what[1:]} by step {step}: their weights are {distance:.1e} apart, relative; "
                f"{tolerance:.0e} is allowed.\n"
                "  A derivative of another run explains nothing. Fit again on this machine with the same data "
                "(`ifloo fit --overwrite`); steps that differ between machines or libraries cannot be replayed."
            )


@dataclass(frozen=True)
class ReplayedRun:
    """The recorded run as a fold of one pure step over its batches.

    Attributes:
        objective: of the training data; its module gives ℓ and R.
        run: what was recorded.
        places: column of each training id.
    """

    objective: Objective
    run: RecordedRun
    places: dict[int, int]

    @classmethod
    def of(cls, trained: TrainedModel) -> ReplayedRun:
        """The fold of a trained model.

        Raises:
            InputError: its run was not recorded, or was one of other parameters or samples.
        """
        run, objective = trained.run, trained.objective
        if run is None:
            raise InputError(
                "Unrolled influence is the derivative of a training run, and this model's run was not recorded.\n"
                "  Fit it with the recorder on (`ifloo fit` with a config whose `attribution.method` is "
                "ifloo.attribution.Unrolled), or use a method that needs the weights alone."
            )
        if (trained_size := len(run.state(0).theta)) != objective.size:
            raise InputError(
                f"The recorded run trained {trained_size} parameters, {objective.size} are attributed.\n"
                "  Unrolled influence is of all trained parameters: leave attribution.parameters out."
            )
        places = {i: column for column, i in enumerate(objective.data.ids.tolist())}
        unknown = {i for ids in run.batch_ids for i in ids.tolist()} - places.keys()
        if unknown:
            raise InputError(
                f"The recorded run saw samples that the training data do not hold, such as id {min(unknown)}.\n"
                "  Give the data the model was fitted on."
            )
        return cls(objective, run, places)

    @property
    def losses(self) -> FunctionalLosses:
        return self.objective.losses

    def columns(self, k: int) -> Int[Tensor, " b"]:
        """Positions in the training data of the samples of step k."""
        return torch.tensor([self.places[i] for i in self.run.batch_ids[k].tolist()])

    def batch(self, k: int) -> Batch:
        return self.objective.data.sample(self.columns(k))  # type: ignore[attr-defined]

    def ones(self, batch: Batch) -> Float[Tensor, " b"]:
        theta = self.losses.space
        return torch.ones(batch_size(batch), dtype=theta.dtype, device=theta.device)

    def step(self, state: State, weights: Float[Tensor, " b"], batch: Batch, k: int) -> State:
        """The state after step k (from 0), as a pure function of the state before it and of the samples' weights."""

        def value(theta: Tensor) -> Tensor:
            losses = self.losses.sample_losses(theta, batch)
            return (weights * losses).mean() + self.losses.penalty(theta)

        rate = self.run.rates[k].to(state.theta)
        count = torch.tensor(float(k + 1), dtype=state.theta.dtype, device=state.theta.device)
        return self.run.update.step(state, grad(value)(state.theta), rate, count)

    def step_back(
        self, state: State, batch: Batch, k: int, adjoint: tuple[Tensor, tuple[Tensor, ...]]
    ) -> tuple[tuple[Tensor, tuple[Tensor, ...]], Float[Tensor, "m b"]]:
        """Adjoints of the state before step k from those after it, and what the step adds to the scores."""

        def forward(theta: Tensor, moments: tuple[Tensor, ...], weights: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
            after = self.step(State(theta, moments), weights, batch, k)
            return after.theta, after.moments

        pull: Callable[..., tuple[Tensor, tuple[Tensor, ...], Tensor]]
        pull = vjp(forward, state.theta, state.moments, self.ones(batch))[1]
        if len(adjoint[0]) == 1:  # a vmap of one costs more than it saves
            theta, moments, weights = pull((adjoint[0][0], tuple(x[0] for x in adjoint[1])))
            return (theta[None], tuple(x[None] for x in moments)), weights[None]
        theta, moments, weights = vmap(pull)(adjoint)
        return (theta, moments), weights


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm().clamp_min(torch.finfo(b.dtype).tiny))
