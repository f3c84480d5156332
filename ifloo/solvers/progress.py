"""A progress bar for work that all right-hand sides share, such as a factor."""

from __future__ import annotations

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
