"""No process of a group outlives the others: watches for ends that nobody announces (a kill, a crash at the start)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence

PARENT = "IFLOO_PARENT"  # environment variable: id of the process that started this one
PERIOD = 0.5  # seconds between two looks
GRACE = 3.0  # seconds in which this process may find out by itself, and say it better


def watch_children(children: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ends this process when one it started has failed: it would wait for that one forever."""
    os.environ.pop(PARENT, None)  # they have it
    if children:
        _in_background(lambda: _until_one_fails(children))


def name_parent() -> None:
    """Lets the processes that this one is about to start know which one to end with, even if it ends before them."""
    os.environ[PARENT] = str(os.getpid())


def watch_parent() -> None:
    """Ends this process with the one that started it; Ctrl-C is for that one to answer."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = int(os.environ.pop(PARENT, os.getppid()))  # torchrun and Slurm name none

    def until_it_is_gone() -> None:
        while os.getppid() == parent:
            time.sleep(PERIOD)
        os._exit(1)

    _in_background(until_it_is_gone)


def _until_one_fails(children: Sequence[subprocess.Popen[bytes]]) -> None:
    while not (failed := [c for c in children if c.poll()]):
        if all(c.returncode == 0 for c in children):
            return
        time.sleep(PERIOD)
    time.sleep(GRACE)
    rank, code = children.index(failed[0]) + 1, failed[0].returncode
    how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
    print(
        f"ifloo: failed: process {rank} of {len(children) + 1} {how}.\n"
        "  What it said stands above. Finished tests are kept; run the same command again.",
        file=sys.stderr,
        flush=True,
    )
    os._exit(code if code in (1, 2) else 1)


def _in_background(work: Callable[[], None]) -> None:
    threading.Thread(target=work, daemon=True, name="ifloo-watch").start()
