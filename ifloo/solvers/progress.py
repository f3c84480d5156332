"""Recording of the residual of a solve, step by step."""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from ifloo.solvers.base import Prepared, Solution


@contextmanager
def recording(prepared: Prepared) -> Generator[ResidualCurve, None, None]:
    """Records the progress of a solver until exit; a callback that is already set is called too."""
    curve, before = ResidualCurve(), prepared.progress

    def both(step: int, residual: float) -> None:
        curve.add(step, residual)
        if before is not None:
            before(step, residual)

    prepared.progress = both
    try:
        yield curve
    finally:
        prepared.progress = before


class ResidualCurve:
    """The worst relative residual of a block of right-hand sides, step by step of their solve."""

    def __init__(self) -> None:
        self._residuals: dict[int, float] = {}

    def add(self, step: int, residual: float) -> None:
        """Adds a point or replaces that of the same step; ignores NaN, which a recursion without residual reports."""
        if math.isfinite(residual):
            self._residuals[step] = residual

    def ended(self, solution: Solution) -> Float[Tensor, "s 2"]:
        """Returns steps, increasing, and worst residuals, float64.

        All residuals but the last are those of the recurrence, over the unfinished rows. The last one is the
        certificate: the worst residual of all rows, recomputed on the full data. A direct solver has only this one.
        """
        last = int(solution.steps.max())
        by_recurrence = {step: residual for step, residual in sorted(self._residuals.items()) if step < last}
        points = [*by_recurrence.items(), (last, float(solution.residual.max()))]
        return torch.tensor(points, dtype=torch.float64)
