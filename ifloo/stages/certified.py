"""From scores with a certificate to what is stored of each test."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from ifloo.attribution import DEFINITIONS, Certificate
from ifloo.data.protocol import QueryBatches
from ifloo.objective import Batch
from ifloo.objective.batches import tensors_of
from ifloo.solvers import Status
from ifloo.stages.predictor import ScoredBlock
from ifloo.store import JSON, ScoredTest, StoredInfluences, sha256_of_tensors

log = logging.getLogger(__name__)


def stored(block: ScoredBlock, damping: float, method: str, settings: str) -> list[StoredInfluences]:
    """The tests of a block, each for a file of its own; those whose solver had no tolerance are warned of."""
    scores, certificate = block.scores, block.scores.certificate
    for k, status in enumerate(certificate.status):
        if status is Status.FIXED_STEPS:
            log.warning(_not_certified(f"test {int(scores.query_ids[k])}", certificate, k))
    train_ids = scores.train_ids.cpu().numpy()
    return [
        StoredInfluences(
            test_id=int(t),
            scores=scores.value[k].float().clone().numpy(),  # the block's memory is used again
            train_ids=train_ids,
            score_mean=float(block.mean[k]),
            residual=float(certificate.residual[k]),
            undamped_residual=float(certificate.undamped_residual[k]),
            error_bound=None if certificate.error_bound is None else float(certificate.error_bound[k]),
            steps=int(certificate.steps[k]),
            status=certificate.status[k].name,
            damping=damping,
            method=method,
            definitions=DEFINITIONS,
            settings=settings,
            repeat_error=None if certificate.repeat_error is None else float(certificate.repeat_error[k]),
            residual_curve=certificate.curves[k].numpy(),
        )
        for k, t in enumerate(scores.query_ids)
    ]


def scored_tests(block: ScoredBlock, method: str, contents: Mapping[str, JSON]) -> list[ScoredTest]:
    """What the index says of the tests of a block; one warning where the solver had no tolerance."""
    scores, certificate = block.scores, block.scores.certificate
    ids = [int(t) for t in scores.query_ids]
    fixed = [k for k, status in enumerate(certificate.status) if status is Status.FIXED_STEPS]
    if fixed:
        worst = max(fixed, key=lambda k: float(certificate.residual[k]))
        log.warning(_not_certified(f"tests {ids[0]} to {ids[-1]}, the worst (test {ids[worst]})", certificate, worst))
    bound, repeat = certificate.error_bound, certificate.repeat_error
    return [
        ScoredTest(
            t,
            float(block.mean[k]),
            {
                "residual": float(certificate.residual[k]),
                "undamped_residual": float(certificate.undamped_residual[k]),
                "error_bound": None if bound is None else float(bound[k]),
                "steps": int(certificate.steps[k]),
                "status": certificate.status[k].name,
                "method": method,
                "content": contents[str(t)],
                **({} if repeat is None else {"repeat_error": float(repeat[k])}),
            },
        )
        for k, t in enumerate(ids)
    ]


def content_of(query: Batch) -> str:
    """SHA-256 of a test sample."""
    return sha256_of_tensors({str(i): x for i, x in enumerate(tensors_of(query))})


def contents_of(data: QueryBatches, test_ids: Sequence[int]) -> dict[str, JSON]:
    """SHA-256 of each test sample, by id; each alone, since a batch may pad it to the length of its neighbours.

    Raises:
        InputError: an id out of range.
    """
    return {str(t): content_of(data.test_batch([t])) for t in test_ids}


def _not_certified(which: str, certificate: Certificate, k: int) -> str:
    repeat = certificate.repeat_error
    spread = "" if repeat is None else f", standard error between repeats {float(repeat[k]):.1%} of the solution"
    return (
        f"{which}: the solver took its fixed {int(certificate.steps[k])} steps; its true relative residual is "
        f"{float(certificate.residual[k]):.2g} (damped system), {float(certificate.undamped_residual[k]):.2g} "
        f"(undamped){spread}. Judge the scores by it; solver CG reaches 1e-10."
    )
