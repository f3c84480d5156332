"""Findings on the curvature of a checkpoint that is not at a minimum: whether a solve would refuse it."""

from __future__ import annotations

import torch
from torch import Tensor

from ifloo.curvature import LinearOperator
from ifloo.doctor.finding import Finding, Severity
from ifloo.objective import Objective, scoring
from ifloo.objective.functional import Path
from ifloo.solvers.indefinite import lowest_eigenvalue, sufficient_damping
from ifloo.stages.scores.engine_choice import curvature_at
from ifloo.stages.settings import AttributionSettings

ROWS, ROWS_OF_LOOP = 1000, 64  # samples that an estimate takes, the fewer the slower a product is


def curvature_findings(
    objective: Objective, theta: Tensor, settings: AttributionSettings, checkpoint: str
) -> list[Finding]:
    """Reports a curvature that is not positive definite, with a damping by which it would be.

    The estimate is taken on some of the samples: their curvature varies more than that of all, so that its smallest
    eigenvalue tends to be lower, and the damping larger than needed.
    """
    with scoring(objective.losses.module):
        whole = curvature_at(settings, objective, theta)
        rows = min(objective.n, ROWS_OF_LOOP if objective.losses.path is Path.LOOP else ROWS)
        part = _of_samples(whole, rows) if rows < objective.n else whole
        lowest = lowest_eigenvalue(part)
        if not lowest.value < 0:
            return []
        damping = sufficient_damping(part, lowest)
    return [
        Finding(
            f"a curvature that is not positive definite: smallest eigenvalue about {lowest.value:.1e}",
            checkpoint,
            "ifloo influence stops with this curvature; scores need one that is positive definite.",
            f"Give --attribution.damping {damping:g} (estimated from {rows:,} samples; scores are then those of a "
            "damped curvature, a ranking), or train to a minimum, or score by first derivatives alone: "
            "attribution.method ifloo.attribution.GradientDot.",
            Severity.WARNING,
        )
    ]


def _of_samples(operator: LinearOperator, rows: int) -> LinearOperator:
    sampler = operator.sampler
    return operator if sampler is None else sampler.subsampled(rows, torch.Generator().manual_seed(0))
