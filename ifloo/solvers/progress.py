"""Progress bars for work that says how far it is."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from tqdm import tqdm

from ifloo.curvature.operator import Tick


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
