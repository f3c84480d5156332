"""Floor 0: how work reports its progress, and the progress bars that draw it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

from tqdm import tqdm

OnProgress = Callable[[int, int], None]  # (parts done, total number of parts)


def no_progress(done: int, total: int) -> None:
    """Ignores progress updates."""


def part_of(on_progress: OnProgress, number: int, count: int) -> OnProgress:
    """Returns a callback that reports the progress of one of `count` equal parts as progress of the whole."""
    return lambda done, total: on_progress(number * total + done, count * total)


def bar(description: str, shown: bool = True) -> OnProgress:
    """Returns a callback that draws a bar on stderr, from the first part done until the last."""
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
    """Draws a bar on stderr while the block runs, also before its first part is done."""
    with tqdm(desc=description, unit=unit, leave=False, mininterval=0.5) as line:

        def tick(done: int, total: int) -> None:
            line.total = total
            line.update(done - line.n)

        yield tick
