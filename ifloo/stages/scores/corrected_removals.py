"""Removals predicted with the leverage of the removed sample counted in, for the samples that will be refitted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ifloo.attribution import InfluenceEngine
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
    engine: InfluenceEngine, queries: Batch, scored: Sequence[StoredInfluences], ids: Sequence[int], layout: Layout
) -> None:
    """Writes, for each test scored, the corrected effects of removing these ids; ids already there are kept.

    Args:
        engine: that made the scores, or one like it.
        queries: the tests, in the order of `scored`.
        scored: their scores.
        ids: training samples.
        layout: where files go.

    Raises:
        InputError: the curvature is not that of a linear head, whose samples have a leverage.
        SolveError: a solve that cannot be used.
    """
    head = head_of(engine.curvature)
    there = {one.test_id: _there(layout, one) for one in scored}
    missing = [i for i in ids if any(i not in found for found in there.values())]
    if not missing:
        return
    engine.objective.losses.module.to(head.device)  # a Trainer takes it back to the host when it is done
    directions = engine.directions(to_device(queries, head.device, head.dtype))
    effects, leverages = removal_effects(head, engine.prepared, directions.value, missing)
    by_leverage = dict(zip(missing, leverages.tolist(), strict=True))
    for row, one, residual in zip(effects.tolist(), scored, directions.certificate.residual.tolist(), strict=True):
        both = {**there[one.test_id], **{i: (e, by_leverage[i]) for i, e in zip(missing, row, strict=True)}}
        stored = StoredRemovals(
            one.test_id,
            np.array(list(both), dtype=np.int64),
            np.array([e for e, _ in both.values()]),
            np.array([h for _, h in both.values()]),
            residual,
            one.damping,
            DEFINITIONS,
            one.settings,
        )
        removals.save(layout.removals(one.test_id), stored)


def head_of(curvature: LinearOperator) -> LinearHead:
    """The linear head behind a curvature.

    Raises:
        InputError: it is of another kind, whose samples have no leverage of this form.
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


def _there(layout: Layout, scored: StoredInfluences) -> dict[int, tuple[float, float]]:
    """Effects and leverages on disk, by id, if they belong to these scores."""
    path = layout.removals(scored.test_id)
    if not path.exists() or (found := removals.load(path)).settings != scored.settings:
        return {}
    numbers = zip(found.effects.tolist(), found.leverages.tolist(), strict=True)
    return dict(zip(found.ids.tolist(), numbers, strict=True))
