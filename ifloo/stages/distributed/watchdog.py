"""Watchdog: stops this process when a peer process has died without notice (a kill, a crash at the start)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence

PARENT = "IFLOO_PARENT"  # environment variable: id of the process that started this one
PERIOD = 0.5  # seconds between two checks
GRACE = 3.0  # seconds in which this process may detect the failure itself, with a better message


def watch_children(children: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ends this process when one that it started has failed, since it would wait for that one forever."""
    os.environ.pop(PARENT, None)  # the children have it
    if children:
        _in_background(lambda: _exit_after_failure(children))


def name_parent() -> None:
    """Names this process to those that it starts next, so that they end with it, even if it ends before they run."""
    os.environ[PARENT] = str(os.getpid())


def watch_parent() -> None:
    """Ends this process when the one that started it ends; only that one handles Ctrl-C."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = int(os.environ.pop(PARENT, os.getppid()))  # torchrun and Slurm set no such variable

    def exit_after_parent() -> None:
        while os.getppid() == parent:
            time.sleep(PERIOD)
        os._exit(1)

    _in_background(exit_after_parent)


def _exit_after_failure(children: Sequence[subprocess.Popen[bytes]]) -> None:
    while not (failed := [c for c in children if c.poll()]):
        if all(c.returncode == 0 for c in children):
            return
        time.sleep(PERIOD)
    time.sleep(GRACE)
    rank, code = children.index(failed[0]) + 1, failed[0].returncode
    how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
    print(
        f"ifloo: failed: process {rank} of {len(children) + 1} {how}.\n"
        "  Its message is above. Finished tests are kept; run the same command again.",
        file=sys.stderr,
        flush=True,
    )
    os._exit(code if code in (1, 2) else 1)


def _in_background(work: Callable[[], None]) -> None:
    threading.Thread(target=work, daemon=True, name="ifloo-watch").start()
