"""Progress bars for work that says how far it is."""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from ifloo.curvature.operator import Tick
from ifloo.solvers.solution import Prepared, Solution


def bar(description: str, shown: bool = True) -> Tick:
    """A line on stderr that comes with the first part done and goes with the last."""
    line: list[tqdm] = []

    def tick(done: int, total: int) -> None:
        if not line:
            line.append(tqdm(total=total, desc=description, unit="part", leave=False, disable=not shown))
        line[0].update(done - line[0].n)
        if done >= total:
            line.pop().close()

    return tick


@contextmanager
def ticking(description: str, unit: str) -> Generator[Tick, None, None]:
    """A line on stderr that is there while the work goes on, from before its first part."""
    with tqdm(desc=description, unit=unit, leave=False, mininterval=0.5) as line:

        def tick(done: int, total: int) -> None:
            line.total = total
            line.update(done - line.n)

        yield tick


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
