"""The progress of a solve as data: its residual, step by step."""

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
    """Keeps what a solver tells of its progress; whoever was told before is told as well."""
    curve, told = ResidualCurve(), prepared.progress

    def both(step: int, residual: float) -> None:
        curve.add(step, residual)
        if told is not None:
            told(step, residual)

    prepared.progress = both
    try:
        yield curve
    finally:
        prepared.progress = told


class ResidualCurve:
    """The worst relative residual of a block of right-hand sides, step by step of their solve."""

    def __init__(self) -> None:
        self._residuals: dict[int, float] = {}

    def add(self, step: int, residual: float) -> None:
        """Keeps a point; of one step the last word counts. A recursion without a residual of its own says NaN."""
        if math.isfinite(residual):
            self._residuals[step] = residual

    def ended(self, solution: Solution) -> Float[Tensor, "s 2"]:
        """Steps, increasing, and worst residuals, float64.

        All but the last are as the recurrence sees them, over the rows that still descend. The last is the certificate:
        the worst residual of all rows, recomputed on the full data; of a direct solver it is the only one.
        """
        last = int(solution.steps.max())
        seen = {step: residual for step, residual in sorted(self._residuals.items()) if step < last}
        points = [*seen.items(), (last, float(solution.residual.max()))]
        return torch.tensor(points, dtype=torch.float64)
