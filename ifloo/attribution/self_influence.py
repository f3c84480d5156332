"""Self-influence: effect of each training sample on its own loss, large if no other sample supports its label."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ifloo.attribution.engine import InfluenceEngine
from ifloo.attribution.method import TrainedModel
from ifloo.attribution.products import gradient_chunks
from ifloo.attribution.recorded import require_run, segments
from ifloo.attribution.scores import SelfInfluence
from ifloo.curvature import Damped, LinearOperator, as_head, head_or_hessian
from ifloo.gradients import gradient_norms
from ifloo.objective.batches import concatenate_chunks, without_factors
from ifloo.objective.functional import scoring
from ifloo.objective.objective import Objective, attributed
from ifloo.progress import OnProgress, no_progress, part_of
from ifloo.solvers import Auto
from ifloo.solvers.base import Prepared, relative_residual

log = logging.getLogger(__name__)
BYTES_AT_ONCE = 64 << 20  # memory for the gradients formed at a time
FEWEST = 16  # least number of right-hand sides to solve for together, if memory allows


def certified_self(engine: InfluenceEngine, tick: OnProgress = no_progress) -> SelfInfluence:
    """Computes −s[i, i] with the curvature and solver of an engine: to first order, the rise of a sample's own loss.

    In J = Σ c_i ℓ_i + R this is c_i ∇ℓ_iᵀ (H + δI)⁻¹ ∇ℓ_i: ℓ_i itself has no weight.

    This takes n solves: about 8 n q² operations with a factor, n times the products of one test without one.

    Source: Koh & Liang 2017, arXiv:1703.04730, sec. 5.4.

    Args:
        engine: Influence engine at θ̂.
        tick: Callback that receives the number of finished samples.

    Raises:
        SolveError: If the curvature is not positive definite, or a solve missed its tolerance; "query i" in the message
            is sample i.
    """
    A, objective, theta = engine.curvature, engine.objective, engine.theta
    damping = A.damping if isinstance(A, Damped) else 0.0
    with scoring(objective.losses.module):
        gradients = _gradients(objective, theta, A, _at_once(theta, engine.prepared))
        rows = concatenate_chunks(_own_solves(engine, gradients), objective.n, tick)
    residual, undamped = rows[1], rows[2]
    value, squares = _factor_once(rows[0], objective), _factor_once(rows[3], objective)
    bound = None
    if engine.strong_convexity is not None and engine.strong_convexity + damping > 0:
        # |g·(x̂ − x)| <= |g| |r| / (μ + δ), and |r| is the relative residual times |g|; both gradients and the product
        # of the two are rounded.
        bound = (residual + 3 * engine.rounding) * squares / (objective.n * (engine.strong_convexity + damping))
    return SelfInfluence(value, residual, undamped, bound)


def _own_solves(engine: InfluenceEngine, gradients: Iterator[Float[Tensor, "g p"]]) -> Iterator[Float[Tensor, "4 g"]]:
    """Yields rows g·(H + δI)⁻¹g / n, residual, undamped residual and ‖g‖² of each chunk of samples, g = n c_i ∇ℓ_i."""
    A, n, first = engine.curvature, engine.objective.n, 0
    undamped = A.base if isinstance(A, Damped) and A.damping > 0 else None
    for G in gradients:
        solution = engine.prepared.solve(G).require(first, n)
        residual = solution.residual if undamped is None else relative_residual(undamped, solution.value, G)
        yield torch.stack([(solution.value * G).sum(1) / n, solution.residual, residual, G.square().sum(1)])
        first += len(G)


def tracin_self(
    trained: TrainedModel, checkpoints: int | None = 10, tick: OnProgress = no_progress
) -> Float[Tensor, " n"]:
    """Computes Σ_c η_ci ‖∇ℓ_i(θ_c)‖² ≥ 0 of all n samples, nats per unit weight for plain SGD.

    In J = Σ c_i ℓ_i + R each term is n c_i times that, once, as the step on sample i is and its loss is not.

    Source: Pruthi et al. 2020, arXiv:2002.08484, self-influence of TracInCP.

    Args:
        trained: Trained model with its recorded run.
        checkpoints: Largest number of saved states to use, as in `TracIn`.
        tick: Callback that receives the number of finished samples.

    Raises:
        InputError: If the run was not recorded.
    """
    run, objective = require_run(trained.run, "Self-influence by TracIn"), trained.objective
    losses, parts = objective.losses, segments(run, checkpoints)
    total = torch.zeros(objective.n, dtype=trained.theta.dtype, device=trained.theta.device)
    for k, (first, last) in enumerate(parts):
        theta = run.state(last).theta.to(trained.theta)
        with scoring(losses.module):
            chunks = (gradient_norms(losses, theta, batch) for _, batch in objective.data.with_ids())
            norms = concatenate_chunks(chunks, objective.n, part_of(tick, k, len(parts)))
        total += run.visits(objective.data.ids, first, last).to(total) * _factor_once(norms.square(), objective)
    return total


def last_layer_self(
    objective: Objective,
    theta: Float[Tensor, " p"],
    damping: float = 0.0,
    patterns: Sequence[str] = ("*",),
    tick: OnProgress = no_progress,
) -> Float[Tensor, " n"]:
    """Computes (1/n) ∇ℓ_iᵀ (H + δI)⁻¹ ∇ℓ_i ≥ 0 of all n samples, nats: the rise of a sample's own loss on its removal.

    In J = Σ c_i ℓ_i + R the weight c_i takes the place of 1/n.

    Source: Koh & Liang 2017, arXiv:1703.04730, sec. 5.4.

    Args:
        objective: J(θ; 1).
        theta: θ̂.
        damping: δ, nats per squared parameter.
        patterns: Shell-style patterns of the attributed parameters. For those of one linear layer (`head.*`) H has a
            closed form; others take the general path, which solves by products for each sample unless H fits into
            memory.
        tick: Callback that receives the number of finished samples.

    Raises:
        InputError: If no parameter matches, or the damping is negative.
        SolveError: If H + δI is not positive definite.
    """
    with attributed(objective, theta, patterns) as (part, own), scoring(objective.losses.module):
        operator = head_or_hessian(part, own, lambda why: log.info("self-influence: Hessian, by products. %s", why))
        A = Damped(operator, damping) if damping else operator
        prepared = Auto().resolve(A, part.n).prepare(A)
        gradients = _gradients(part, own, A, _at_once(own, prepared))
        chunks = (prepared.quadratic_forms(g.unsqueeze(1)).flatten() / part.n for g in gradients)
        return _factor_once(concatenate_chunks(chunks, part.n, tick), part)


def loss_ranking(
    objective: Objective, theta: Float[Tensor, " p"], tick: OnProgress = no_progress
) -> Float[Tensor, " n"]:
    """Computes ℓ_i(θ) of all n samples, nats: a cheap ranking for label errors that other rankings hardly beat.

    The weights c_i of J = Σ c_i ℓ_i + R do not enter.
    """
    with torch.no_grad(), scoring(objective.losses.module):
        plain = (without_factors(batch) for _, batch in objective.data.with_ids())
        chunks = (objective.losses.sample_losses(theta, batch) for batch in plain)
        return concatenate_chunks(chunks, objective.n, tick)


def _factor_once(squares: Float[Tensor, " n"], objective: Objective) -> Float[Tensor, " n"]:
    """Divides quadratic forms of n c_i ∇ℓ_i by n c_i, so that a factor enters once; without weight they are 0."""
    if objective.factors is None:
        return squares
    factors = objective.factors.to(squares)
    return torch.where(factors > 0, squares / torch.where(factors > 0, factors, 1.0), 0.0)


def _at_once(theta: Tensor, prepared: Prepared) -> int:
    """Returns the number of gradients to form and solve for together."""
    fits = BYTES_AT_ONCE // (theta.numel() * theta.element_size())
    return max(1, min(fits, max(FEWEST, prepared.efficient_rows)))


def _gradients(objective: Objective, theta: Tensor, A: LinearOperator, size: int) -> Iterator[Float[Tensor, "g p"]]:
    """Yields ∇ℓ_i of all samples in order, `size` at a time; for a head as outer products of inputs and residuals."""
    head = as_head(A)
    if head is None:
        yield from gradient_chunks(objective, theta, size)
        return
    for chunk in head.chunks:
        residuals = chunk.residuals @ head.basis
        for r, x in zip(residuals.split(size), chunk.inputs.split(size), strict=True):
            yield head.expand((r.mT @ x).flatten(1))
