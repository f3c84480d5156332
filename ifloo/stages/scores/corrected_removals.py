"""Predictions of removals that account for the leverage of the removed sample, for the samples to refit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ifloo.attribution import InfluenceEngine, weighted_definitions
from ifloo.attribution.leverage import removal_effects
from ifloo.curvature import LinearHead, LinearOperator, as_head
from ifloo.errors import InputError
from ifloo.objective import Batch
from ifloo.objective.batches import to_device
from ifloo.store import Layout, StoredInfluences, StoredRemovals, removals

DEFINITIONS = (
    "effects[k] = (1/n) grad L_t . (H - hess l_i / n)^-1 grad l_i, nats, i = ids[k]: predicted change of L_t when w_i "
    "goes to 0 and n stays; where row i is deleted, the mean of the test's scores is added. H is with the penalty and, "
    "where damping > 0, with it. leverages[k] = tr(hess l_i H^-1) / n. residual: of H^-1 grad L_t, relative."
)


def correct_removals(
    engine: InfluenceEngine,
    queries: Batch,
    scored: Sequence[StoredInfluences],
    ids: Sequence[int],
    layout: Layout,
    rule: str | None = None,
) -> None:
    """Writes, for each scored test, the corrected effects of removing these ids; effects already stored are kept.

    Args:
        engine: Engine of the scores, or one with the same settings.
        queries: Batch of the tests, in the order of `scored`.
        scored: Scores of the tests.
        ids: Ids of the training samples to remove.
        layout: Paths of the files.
        rule: Noun phrase for what the weights of the samples depend on; None if J is the plain mean.

    Raises:
        InputError: The curvature is not that of a linear head, whose samples have a leverage.
        SolveError: A solve failed.
    """
    head = head_of(engine.curvature)
    stored = {one.test_id: _stored_effects(layout, one) for one in scored}
    missing = [i for i in ids if any(i not in found for found in stored.values())]
    if not missing:
        return
    engine.objective.losses.module.to(head.device)  # a Trainer moves the module back to the host at its end
    directions = engine.directions(to_device(queries, head.device, head.dtype))
    effects, leverages = removal_effects(head, engine.prepared, directions.value, missing)
    by_leverage = dict(zip(missing, leverages.tolist(), strict=True))
    for row, one, residual in zip(effects.tolist(), scored, directions.certificate.residual.tolist(), strict=True):
        both = {**stored[one.test_id], **{i: (e, by_leverage[i]) for i, e in zip(missing, row, strict=True)}}
        record = StoredRemovals(
            one.test_id,
            np.array(list(both), dtype=np.int64),
            np.array([e for e, _ in both.values()]),
            np.array([h for _, h in both.values()]),
            residual,
            one.damping,
            weighted_definitions(DEFINITIONS, rule),
            one.settings,
        )
        removals.save(layout.removals(one.test_id), record)


def head_of(curvature: LinearOperator) -> LinearHead:
    """Returns the linear head behind a curvature.

    Raises:
        InputError: The curvature is of another kind, whose samples have no leverage of this form.
    """
    head = as_head(curvature)
    if head is None:
        raise InputError(
            "attribution.corrected counts in the leverage of the removed sample, which a linear head has; this "
            f"curvature is {type(curvature).__name__}.\n"
            "  Leave it out, or attribute one linear layer (attribution.parameters) with solver Auto or curvature "
            "LinearHead."
        )
    return head


def _stored_effects(layout: Layout, scored: StoredInfluences) -> dict[int, tuple[float, float]]:
    """Reads the effects and leverages on disk, by id; empty if they belong to other scores."""
    path = layout.removals(scored.test_id)
    if not path.exists() or (found := removals.load(path)).settings != scored.settings:
        return {}
    numbers = zip(found.effects.tolist(), found.leverages.tolist(), strict=True)
    return dict(zip(found.ids.tolist(), numbers, strict=True))
