"""Display of a scoring that takes long: one line, then a bar; a short one shows nothing."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager

from tqdm import tqdm

from ifloo.progress import OnProgress

SECONDS = 3.0  # duration of a scoring that shows nothing


@contextmanager
def shown_when_slow(text: str, seconds: float | None = None) -> Generator[OnProgress, None, None]:
    """Writes one line to stderr when the block has run for some seconds, and draws a bar from then on.

    Args:
        text: Text of the line.
        seconds: Duration without a line; None: `SECONDS`.

    Yields:
        A callback that receives the progress; with another total it starts another bar.
    """
    after = SECONDS if seconds is None else seconds
    display = _Bar(time.monotonic() + after)
    timer = threading.Timer(after, lambda: tqdm.write(text, file=sys.stderr))
    timer.daemon = True  # a process that ends does not wait for it
    timer.start()
    try:
        yield display.tick
    finally:
        timer.cancel()
        display.close()


class _Bar:
    """A bar that is drawn from some time on; tqdm adds the time that is left."""

    def __init__(self, begins: float) -> None:
        self.begins = begins
        self.line: tqdm | None = None

    def tick(self, done: int, total: int) -> None:
        if time.monotonic() < self.begins:
            return
        if self.line is not None and self.line.total != total:
            self.close()
        if self.line is None:
            self.line = tqdm(desc="influence", total=total, initial=done, leave=False, mininterval=0.5)
        self.line.update(done - self.line.n)

    def close(self) -> None:
        """Removes the bar."""
        if self.line is not None:
            self.line.close()
            self.line = None
