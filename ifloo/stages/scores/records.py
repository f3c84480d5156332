"""Records that are stored of each test, from scores with a certificate."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from ifloo.attribution.definitions import STATED, weighted_definitions
from ifloo.solvers import Status
from ifloo.stages.scores.predictor import ScoredBlock
from ifloo.store import JSON, ScoredTest, StoredInfluences

log = logging.getLogger(__name__)


def stored_influences(
    block: ScoredBlock,
    method: str,
    definitions: str,
    settings: str,
    factors: Tensor | None = None,
    rule: str | None = None,
) -> list[StoredInfluences]:
    """Converts a block to one record for each test; the scores may share the memory of the block.

    Args:
        block: Scores.
        method: Name of the method.
        definitions: Definition of the scores for a plain mean.
        settings: Stamp of the settings.
        factors: n·c_i of each training sample; None if J is the plain mean.
        rule: Noun phrase for what the weights c_i depend on, if J has such weights.
    """
    if factors is not None:
        definitions = weighted_definitions(definitions, rule or STATED)
    scores, train_ids = block.scores, block.scores.train_ids.cpu().numpy().astype(np.int64)
    certificate = scores.certificate
    return [
        StoredInfluences(
            test_id=int(t),
            scores=scores.value[k].float().cpu().numpy(),
            train_ids=train_ids,
            score_mean=float(block.mean[k]),
            residual=_number(certificate.residual, k) if certificate else None,
            undamped_residual=_number(certificate.undamped_residual, k) if certificate else None,
            error_bound=_number(certificate.error_bound, k) if certificate else None,
            steps=int(certificate.steps[k]) if certificate else 0,
            status=(certificate.status[k] if certificate else Status.NO_SOLVE).name,
            damping=certificate.damping if certificate else 0.0,
            method=method,
            definitions=definitions,
            settings=settings,
            repeat_error=_number(certificate.repeat_error, k) if certificate else None,
            residual_curve=certificate.curves[k].numpy() if certificate and certificate.curves else None,
            factors=None if factors is None else factors.cpu().numpy(),
        )
        for k, t in enumerate(scores.query_ids)
    ]


def indexed_test(stored: StoredInfluences, content: JSON) -> ScoredTest:
    """Returns the entry of a record in the index of all tests; `content` is the SHA-256 of the test sample."""
    row: dict[str, JSON] = {
        "residual": stored.residual,
        "undamped_residual": stored.undamped_residual,
        "error_bound": stored.error_bound,
        "steps": stored.steps,
        "status": stored.status,
        "method": stored.method,
        "content": content,
    }
    if stored.repeat_error is not None:
        row["repeat_error"] = stored.repeat_error
    return ScoredTest(stored.test_id, stored.score_mean, row)


def _number(column: Tensor | None, k: int) -> float | None:
    return None if column is None else float(column[k])


def warn_of_fixed_steps(records: Sequence[StoredInfluences]) -> None:
    """Logs a warning for each test whose solver had no tolerance."""
    for one in records:
        if one.status == Status.FIXED_STEPS.name:
            log.warning(_not_certified(f"test {one.test_id}", one))


def warn_of_worst_fixed_steps(records: Sequence[StoredInfluences]) -> None:
    """Logs one warning for a block of tests whose solver had no tolerance, with the worst of them."""
    fixed = [one for one in records if one.status == Status.FIXED_STEPS.name]
    if fixed:
        worst = max(fixed, key=lambda one: one.residual or 0.0)
        first, last = records[0].test_id, records[-1].test_id
        log.warning(_not_certified(f"tests {first} to {last}, the worst (test {worst.test_id})", worst))


def _not_certified(which: str, one: StoredInfluences) -> str:
    repeat = one.repeat_error
    spread = "" if repeat is None else f", standard error between repeats {repeat:.1%} of the solution"
    return (
        f"{which}: the solver took its fixed {one.steps} steps; its true relative residual is {one.residual:.2g} "
        f"(damped system), {one.undamped_residual:.2g} (undamped){spread}. Judge the scores by it; solver CG reaches "
        "1e-10."
    )
