"""Choice of the engine from the settings: form of the curvature and of the products; both are logged."""

from __future__ import annotations

import logging

from torch import Tensor

from ifloo.attribution import ForwardProducts, HeadProducts, InfluenceEngine, Products
from ifloo.attribution.influence_function import HEAD_BYTES, refuse_decoupled
from ifloo.curvature import Damped, Hessian, LinearHead, LinearOperator, as_head, head_or_hessian
from ifloo.objective import Objective
from ifloo.params import DTYPES
from ifloo.progress import bar
from ifloo.solvers import Auto
from ifloo.stages.scores.corrected_removals import head_of
from ifloo.stages.settings import AttributionSettings

log = logging.getLogger(__name__)
WEIGHT_AND_BIAS = 2  # largest number of parameters of one layer: with more, the head is none for a plain reason


def curvature_at(settings: AttributionSettings, objective: Objective, theta: Tensor) -> LinearOperator:
    """Returns the curvature at θ, with the damping of the settings.

    If the solver is `Auto` and the settings name no curvature, H has the form of a `LinearHead` where possible: the
    same matrix. A `LinearHead` of more than `HEAD_BYTES` is used only if the settings name it.

    Raises:
        InputError: The curvature of the settings does not support this model.
    """
    operator = _undamped(settings, objective, theta)
    return Damped(operator, settings.damping) if settings.damping else operator


def _undamped(settings: AttributionSettings, objective: Objective, theta: Tensor) -> LinearOperator:
    if settings.curvature is not None:
        return settings.curvature(objective, theta)
    if not isinstance(settings.solver, Auto):
        return Hessian(objective, theta)
    if (need := LinearHead.bytes_kept(objective)) > HEAD_BYTES:
        log.info("curvature: Hessian, since a linear head would keep %.1f GiB.", need / 2**30)
        return Hessian(objective, theta)
    names = objective.losses.space.names

    def say(why: str) -> None:
        of_all = f" with all {len(theta):,} attributed parameters." if len(names) > WEIGHT_AND_BIAS else f". {why}"
        log.info("curvature: Hessian, by products%s", of_all)

    return head_or_hessian(objective, theta, say)


def products_of(
    settings: AttributionSettings, objective: Objective, theta: Tensor, curvature: LinearOperator
) -> Products:
    """Returns the form of the products ∇ℓ_i · v."""
    head = as_head(curvature)
    if head is None:
        return ForwardProducts(objective, theta, settings.batch_size)
    dtype = settings.products_dtype
    return HeadProducts(head, DTYPES[dtype] if dtype else None)


def known_convexity(objective: Objective, curvature: LinearOperator) -> float | None:
    """Returns a known lower bound on the eigenvalues of H without its damping, for error bounds; None if unknown.

    The module states one, or a linear head with its penalty has one; it may be negative, and damping adds to it.
    """
    stated, head = objective.losses.contract.strong_convexity(), as_head(curvature)
    return head.lower_bound if stated is None and head is not None else stated


def _named(curvature: LinearOperator) -> str:
    """Returns the class of the curvature, and its damping."""
    if isinstance(curvature, Damped):
        return f"{type(as_head(curvature.base) or curvature.base).__name__}, damped by {curvature.damping:g}"
    return type(as_head(curvature) or curvature).__name__


def engine_for(
    objective: Objective,
    theta: Tensor,
    settings: AttributionSettings,
    right_hand_sides: int,
    shown: bool = True,
) -> InfluenceEngine:
    """Returns the engine for a number of right-hand sides; its progress is `shown` on a bar.

    Raises:
        InputError: The curvature of the settings, or any curvature, does not support this model.
    """
    refuse_decoupled(objective.losses.module, "influence")
    curvature = curvature_at(settings, objective, theta)
    if settings.corrected and settings.test_ids != "all":
        head_of(curvature)  # before any work
    by = products_of(settings, objective, theta, curvature)
    log.info("scores: %s, curvature %s.", by.name, _named(curvature))
    solver = settings.solver.resolve(curvature, right_hand_sides)
    mu = known_convexity(objective, curvature)
    return InfluenceEngine(objective, theta, curvature, solver, mu, by, bar("factor", shown))
