"""Floor 0: how work reports its progress, and the progress bars that draw it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

from tqdm import tqdm

OnProgress = Callable[[int, int], None]  # (parts done, parts in all)


def no_progress(done: int, total: int) -> None:
    """Ignores progress updates."""


def part_of(on_progress: OnProgress, number: int, count: int) -> OnProgress:
    """Reports the progress of one of `count` equal parts of the work as progress of the whole."""
    return lambda done, total: on_progress(number * total + done, count * total)


def bar(description: str, shown: bool = True) -> OnProgress:
    """Draws a line on stderr that appears with the first part done and disappears with the last."""
    line: list[tqdm] = []

    def tick(done: int, total: int) -> None:
        if not line:
            line.append(tqdm(total=total, desc=description, unit="part", leave=False, disable=not shown))
        line[0].update(done - line[0].n)
        if done >= total:
            line.pop().close()

    return tick


@contextmanager
def ticking(description: str, unit: str) -> Generator[OnProgress, None, None]:
    """Draws a line on stderr for as long as the block runs, also before its first part is done."""
    with tqdm(desc=description, unit=unit, leave=False, mininterval=0.5) as line:

        def tick(done: int, total: int) -> None:
            line.total = total
            line.update(done - line.n)

        yield tick
