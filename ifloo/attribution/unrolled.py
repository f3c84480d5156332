"""Unrolled differentiation: exact derivatives of a test loss in each sample's weight, through the training run."""

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

REPLAYED = {torch.float64: 1e-9, torch.float32: 1e-4}  # largest relative distance of a replayed from a recorded state


@dataclass(frozen=True)
class ReverseState:
    """State of a reverse pass over a training run.

    Attributes:
        step: Number of training steps before the state whose adjoint this is.
        theta: Derivative of L_t in the parameters of that state, `[m, p]`.
        moments: Derivatives of L_t in its moments, each `[m, p]`.
        scores: Sum over the later steps of their terms of ∂L_t/∂w_i, `[m, n]`.
        distance: Largest relative distance so far between a replayed and a recorded state.
    """

    step: int
    theta: Float[Tensor, "m p"]
    moments: tuple[Float[Tensor, "m p"], ...]
    scores: Float[Tensor, "m n"]
    distance: float


@runtime_checkable
class ReverseCheckpoint(Protocol):
    """Checkpoint of a reverse pass, saved after each segment, so that an interrupted pass can resume."""

    def load(self) -> ReverseState | None:
        """Returns the last saved state; None if none was saved."""

    def keep(self, reverse: ReverseState) -> None:
        """Saves a state in place of the last one."""


class NoCheckpoint:
    """Null checkpoint: stores nothing."""

    def load(self) -> ReverseState | None:
        return None

    def keep(self, reverse: ReverseState) -> None:
        return None


@dataclass(frozen=True)
class Unrolled(Method):
    r"""s[t, i] = ∂L_t(θ_T)/∂w_i, with θ_T the end of the recorded run z_{k+1} = step(z_k; w), z = (θ, moments).

    The adjoint starts at λ_T = (∇L_t(θ_T), 0) and goes backwards, λ_k = (∂z_{k+1}/∂z_k)ᵀ λ_{k+1}; the scores are
    s[t, i] = Σ_k (∂z_{k+1}/∂w_i)ᵀ λ_{k+1}. A `vjp` of the step computes both, for any optimizer. The states of a
    segment are replayed from its recorded start, and the replay must end at its recorded end.

    The derivative is exact for the recorded run, converged or not: momentum, Adam, decoupled decay and schedules are
    part of the step. It predicts `zero_weight` removals, since n stays. The cost is about 3 gradients for each step and
    query, and one replay of the run.

    Source: Hara et al. 2019, arXiv:1906.08473 (SGD); Bae et al. 2024, arXiv:2405.12186, section 3 (unrolling).

    Attributes:
        tolerance: Largest relative distance allowed between replayed and recorded states; None takes 1e-9 in float64
            and 1e-4 in float32, where the order of additions shows.
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
        """Computes the scores, starting from the last state saved in `progress`.

        Args:
            trained: Trained model with its recorded run.
            queries: Batch of m query samples.
            progress: Checkpoint of the reverse pass.
            tick: Callback that receives the number of finished steps.

        Raises:
            InputError: If the run was not recorded, or some of its parameters are not attributed.
            WorkError: If the replay does not follow the recorded run.
        """
        replay, queries = ReplayedRun.of(trained), trained.objective.losses.in_form(queries)
        with scoring(trained.objective.losses.module):
            reverse = progress.load() or self._start(trained, queries, replay)
            for first, last in reversed(list(pairwise(replay.run.saved))):
                if last <= reverse.step:
                    reverse = self._segment(replay, first, last, reverse, tick)
                    progress.keep(reverse)
        m = len(reverse.theta)
        certificate = Certificate(
            residual=torch.full((m,), reverse.distance, dtype=reverse.scores.dtype),
            undamped_residual=None,
            error_bound=None,
            repeat_error=None,
            steps=torch.full((m,), replay.run.steps),
            status=(Status.REPLAYED,) * m,
        )
        data, factors = trained.objective.data, trained.objective.factors
        return Scores(reverse.scores, data.ids, query_ids(queries), certificate, factors)

    def _start(self, trained: TrainedModel, queries: Batch, replay: ReplayedRun) -> ReverseState:
        end = replay.run.state(replay.run.steps)
        distance = _distance(end.theta, trained.theta)
        self._check(
            distance, replay.run.steps, "the recorded run ends elsewhere than the checkpoint", trained.theta.dtype
        )
        queries = to_device(queries, trained.theta.device, trained.theta.dtype)
        adjoint = sample_gradients(trained.objective.losses, trained.theta, queries)
        moments = tuple(torch.zeros_like(adjoint) for _ in end.moments)
        return ReverseState(
            replay.run.steps, adjoint, moments, adjoint.new_zeros(len(adjoint), trained.objective.n), distance
        )

    def _segment(
        self, replay: ReplayedRun, first: int, last: int, reverse: ReverseState, tick: OnProgress
    ) -> ReverseState:
        """Replays the steps first..last−1, then goes back over them to the adjoint of the state before `first`."""
        batches = [replay.batch(k) for k in range(first, last)]
        states = [replay.run.state(first)]
        for k, batch in enumerate(batches, first):
            states.append(replay.step(states[-1], replay.ones(batch), batch, k))
        distance = _distance(states[-1].theta, replay.run.state(last).theta)
        self._check(distance, last, "the replayed training left the recorded one", states[-1].theta.dtype)
        adjoint, scores = (reverse.theta, reverse.moments), reverse.scores.clone()
        for k in reversed(range(first, last)):
            adjoint, added = replay.step_back(states[k - first], batches[k - first], k, adjoint)
            scores.index_add_(1, replay.columns(k).to(scores.device), added)
            tick(replay.run.steps - k, replay.run.steps)
        return ReverseState(first, *adjoint, scores, max(distance, reverse.distance))

    def _check(self, distance: float, step: int, what: str, dtype: torch.dtype) -> None:
        tolerance = REPLAYED.get(dtype, 1e-4) if self.tolerance is None else self.tolerance
        if not distance <= tolerance:  # written so that NaN is refused too
            raise WorkError(
                f"{what[0].upper()}{what[1:]} by step {step}: their weights are {distance:.1e} apart, relative; "
                f"{tolerance:.0e} is allowed.\n"
                "  A derivative of another run explains nothing. Fit again on this machine with the same data "
                "(`ifloo fit --overwrite`); steps that differ between machines or libraries cannot be replayed."
            )


@dataclass(frozen=True)
class ReplayedRun:
    """The recorded run as a sequence of pure steps over its batches.

    Attributes:
        objective: Objective of the training data, which gives ℓ and R.
        run: Recorded training run.
        places: Column of the scores for each training id.
    """

    objective: Objective
    run: RecordedRun
    places: dict[int, int]

    @classmethod
    def of(cls, trained: TrainedModel) -> ReplayedRun:
        """Builds the replayed run of a trained model.

        Raises:
            InputError: If its run was not recorded, or has other parameters or samples than the objective.
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
        """Returns the positions in the training data of the samples of step k."""
        return torch.tensor([self.places[i] for i in self.run.batch_ids[k].tolist()])

    def batch(self, k: int) -> Batch:
        """Returns the batch of step k."""
        return self.objective.data.sample(self.columns(k))  # type: ignore[attr-defined]

    def ones(self, batch: Batch) -> Float[Tensor, " b"]:
        """Returns the weights w_i = 1 of the samples of a batch."""
        theta = self.losses.space
        return torch.ones(batch_size(batch), dtype=theta.dtype, device=theta.device)

    def step(self, state: State, weights: Float[Tensor, " b"], batch: Batch, k: int) -> State:
        """Computes the state after step k, counted from 0, as a pure function of state and sample weights."""

        def value(theta: Tensor) -> Tensor:
            losses = self.losses.sample_losses(theta, batch)
            return (weights * losses).mean() + self.losses.penalty(theta)

        rate = self.run.rates[k].to(state.theta)
        count = torch.tensor(float(k + 1), dtype=state.theta.dtype, device=state.theta.device)
        return self.run.update.step(state, grad(value)(state.theta), rate, count)

    def step_back(
        self, state: State, batch: Batch, k: int, adjoint: tuple[Tensor, tuple[Tensor, ...]]
    ) -> tuple[tuple[Tensor, tuple[Tensor, ...]], Float[Tensor, "m b"]]:
        """Computes the adjoints of the state before step k from those after it, and the step's terms of the scores."""

        def forward(theta: Tensor, moments: tuple[Tensor, ...], weights: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
            after = self.step(State(theta, moments), weights, batch, k)
            return after.theta, after.moments

        pull: Callable[..., tuple[Tensor, tuple[Tensor, ...], Tensor]]
        pull = vjp(forward, state.theta, state.moments, self.ones(batch))[1]
        if len(adjoint[0]) == 1:  # vmap over a single row is slower than none
            theta, moments, weights = pull((adjoint[0][0], tuple(x[0] for x in adjoint[1])))
            return (theta[None], tuple(x[None] for x in moments)), weights[None]
        theta, moments, weights = vmap(pull)(adjoint)
        return (theta, moments), weights


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm().clamp_min(torch.finfo(b.dtype).tiny))
