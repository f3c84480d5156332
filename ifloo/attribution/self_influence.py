"""What each training sample does to its own loss: large where only the sample itself speaks for its label."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ifloo.attribution.curvature_route import attributed
from ifloo.attribution.engine import InfluenceEngine
from ifloo.attribution.method import Trained
from ifloo.attribution.tracin import part_of, recorded, segments
from ifloo.curvature import Damped, LinearOperator, as_head, head_or_hessian
from ifloo.gradients import gradient_norms, sample_gradients
from ifloo.objective.batches import batch_size, rows
from ifloo.objective.functional import scoring
from ifloo.objective.objective import Objective
from ifloo.progress import OnProgress, no_progress
from ifloo.solvers import Auto
from ifloo.solvers.solution import Prepared, relative_residual

log = logging.getLogger(__name__)
BYTES_AT_ONCE = 64 << 20  # of gradients
FEWEST = 16  # right-hand sides solved together


@dataclass(frozen=True)
class SelfInfluence:
    """(1/n) ∇ℓ_iᵀ (H + δI)⁻¹ ∇ℓ_i = −s[i, i] of all n samples, with the certificates of the n solves.

    Attributes:
        value: `[n]`, nats.
        residual: `[n]`, relative, of the damped system, on the full data.
        undamped_residual: `[n]`, relative, of the undamped one; the same where δ = 0.
        error_bound: `[n]`, nats: no value is further from the damped solution than this; None where no lower bound
            μ > 0 on the curvature is known.
    """

    value: Float[Tensor, " n"]
    residual: Float[Tensor, " n"]
    undamped_residual: Float[Tensor, " n"]
    error_bound: Float[Tensor, " n"] | None


def certified_self(engine: InfluenceEngine, tick: OnProgress = no_progress) -> SelfInfluence:
    """−s[i, i] by the curvature and solver of an engine: first order in its weight, how far a sample's own loss rises.

    n solves: of a factor about 8 n q² operations; by products n times those of one test.

    Source: Koh & Liang 2017, arXiv:1703.04730, sec. 5.4.

    Args:
        engine: of the attribution, at θ̂.
        tick: told how many samples are done.

    Raises:
        SolveError: the curvature is not positive definite, or a solve missed its tolerance; "query i" is sample i.
    """
    A, objective, theta, parts, done = engine.curvature, engine.objective, engine.theta, [], 0
    base, damping = (A.base, A.damping) if isinstance(A, Damped) else (A, 0.0)
    with scoring(objective.losses.module):
        for G in _gradients(objective, theta, A, _at_once(theta, engine.prepared)):
            solved = engine.prepared.solve(G).require(done, objective.n)
            undamped = relative_residual(base, solved.value, G) if damping else solved.residual
            parts.append(((solved.value * G).sum(1) / objective.n, solved.residual, undamped, G.square().sum(1)))
            done += len(G)
            tick(done, objective.n)
    value, residual, undamped, squares = (torch.cat(column) for column in zip(*parts, strict=True))
    bound = None
    if engine.strong_convexity is not None and engine.strong_convexity + damping > 0:
        # |g·(x̂ − x)| <= |g| |r| / (μ + δ), and |r| is the relative residual times |g|.
        bound = residual * squares / (objective.n * (engine.strong_convexity + damping))
    return SelfInfluence(value, residual, undamped, bound)


def tracin_self(trained: Trained, checkpoints: int | None = 10, tick: OnProgress = no_progress) -> Float[Tensor, " n"]:
    """Σ_c η_ci ‖∇ℓ_i(θ_c)‖² ≥ 0 of all n samples, nats per unit weight for plain SGD; `checkpoints` as in `TracIn`.

    Source: Pruthi et al. 2020, arXiv:2002.08484, self-influence of TracInCP.

    Raises:
        InputError: the run was not recorded.
    """
    run, objective = recorded(trained, "Self-influence by TracIn"), trained.objective
    losses, parts = objective.losses, segments(run, checkpoints)
    total = torch.zeros(objective.n, dtype=trained.theta.dtype, device=trained.theta.device)
    for k, (first, last) in enumerate(parts):
        theta, tell, norms, done = run.state(last).theta.to(trained.theta), part_of(tick, k, len(parts)), [], 0
        with scoring(losses.module):
            for _, batch in objective.data.with_ids():
                norms.append(gradient_norms(losses, theta, batch))
                done += len(norms[-1])
                tell(done, objective.n)
        total += run.visits(objective.data.ids, first, last).to(total) * torch.cat(norms).square()
    return total


def last_layer_self(
    objective: Objective,
    theta: Float[Tensor, " p"],
    damping: float = 0.0,
    patterns: Sequence[str] = ("*",),
    tick: OnProgress = no_progress,
) -> Float[Tensor, " n"]:
    """(1/n) ∇ℓ_iᵀ (H + δI)⁻¹ ∇ℓ_i ≥ 0 of all n samples, nats: the rise of a sample's own loss when it is removed.

    Source: Koh & Liang 2017, arXiv:1703.04730, sec. 5.4.

    Args:
        objective: J(θ; 1).
        theta: θ̂.
        damping: δ, nats per squared parameter.
        patterns: of the parameters attributed, best those of one linear layer (`head.*`): H is then known whole. Others
            take the general path, a solve by products for each sample unless H fits into memory.
        tick: told how many samples are done.

    Raises:
        InputError: no parameter matches, or the damping is negative.
        SolveError: H + δI is not positive definite.
    """
    parts, done = [], 0
    with attributed(objective, theta, patterns) as (part, own), scoring(objective.losses.module):
        operator = head_or_hessian(part, own, lambda why: log.info("self-influence: Hessian, by products. %s", why))
        A = Damped(operator, damping) if damping else operator
        prepared = Auto().chosen(A, part.n).prepare(A)
        for gradients in _gradients(part, own, A, _at_once(own, prepared)):
            parts.append(prepared.sandwich(gradients.unsqueeze(1)).flatten() / part.n)
            done += len(gradients)
            tick(done, part.n)
    return torch.cat(parts)


def loss_ranking(
    objective: Objective, theta: Float[Tensor, " p"], tick: OnProgress = no_progress
) -> Float[Tensor, " n"]:
    """ℓ_i(θ) of all n samples, nats: the ranking for label errors that costs nothing and is hard to beat."""
    parts, done = [], 0
    with torch.no_grad(), scoring(objective.losses.module):
        for _, batch in objective.data.with_ids():
            parts.append(objective.losses.sample_losses(theta, batch))
            done += len(parts[-1])
            tick(done, objective.n)
    return torch.cat(parts)


def _at_once(theta: Tensor, prepared: Prepared) -> int:
    """Gradients to form and solve for together."""
    fits = BYTES_AT_ONCE // (theta.numel() * theta.element_size())
    return max(1, min(fits, max(FEWEST, prepared.at_once)))


def _gradients(objective: Objective, theta: Tensor, A: LinearOperator, size: int) -> Iterator[Float[Tensor, "g p"]]:
    """∇ℓ_i of all samples in order, `size` at a time; of a head by outer products of what it keeps."""
    head = as_head(A)
    if head is None:
        for _, batch in objective.data.with_ids():
            for start in range(0, batch_size(batch), size):
                yield sample_gradients(objective.losses, theta, rows(batch, slice(start, start + size)))
        return
    for chunk in head.chunks:
        residuals = chunk.residuals @ head.basis
        for r, x in zip(residuals.split(size), chunk.inputs.split(size), strict=True):
            yield head.expand((r.mT @ x).flatten(1))
