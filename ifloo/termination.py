"""SIGTERM, with which Slurm, Kubernetes, systemd and `timeout` end a job: it unwinds the work instead of cutting it."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress

CODE = 128 + signal.SIGTERM  # exit code of a process that SIGTERM ended, as a shell reports it
REPEATED = 8.0  # seconds in which a second signal belongs to the first: `timeout` sends two
GRACE = 8.0  # seconds for a command to unwind; Docker kills after 10


class Terminated(SystemExit):
    """Raised where the process was at work when it received SIGTERM."""

    def __init__(self) -> None:
        super().__init__(CODE)


@contextmanager
def sigterm_unwinds() -> Generator[bool, None, None]:
    """SIGTERM raises `Terminated`: files are closed, worker processes ended, nothing is left half-written.

    A handler that is there already stays, whether of a context around this one or of the program that uses ifloo.
    Lightning, which would note the signal and go on to the end of a batch, calls the handler that it finds. Signals
    are for the main thread only.

    Yields:
        Whether this context handles the signal.
    """
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield False
        return
    received = -REPEATED

    def leave(*_: object) -> None:
        nonlocal received
        before, received = received, time.monotonic()
        if received - before >= REPEATED:
            raise Terminated

    signal.signal(signal.SIGTERM, leave)
    try:
        yield True
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def ended_by_sigterm(last: Callable[[], None]) -> Generator[threading.Event, None, None]:
    """Around a whole command: SIGTERM unwinds it, or ends the process where that takes longer than `GRACE`.

    Python handles a signal between two steps of its own, so not within a long call of the linear algebra library nor
    while another process is waited for; and an exception raised within a destructor is lost.

    Args:
        last: called before the process is ended so.

    Yields:
        Set as soon as the signal is there: whatever fails from then on, fails of that.
    """
    received = threading.Event()
    with sigterm_unwinds() as ours:
        if ours and os.name == "posix":
            with _watched(received, last):
                yield received
        else:
            yield received


@contextmanager
def _watched(received: threading.Event, last: Callable[[], None]) -> Generator[None, None, None]:
    """A thread that learns of signals when they arrive, by the descriptor that Python writes their numbers to."""
    global _watching
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    before = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    if before != -1:  # the event loop of a program around this one
        signal.set_wakeup_fd(before)
        reading.close()
        writing.close()
        yield
        return
    over = threading.Event()

    def watch() -> None:
        while numbers := reading.recv(64):
            if signal.SIGTERM in numbers:
                received.set()
                if not over.wait(GRACE):
                    with suppress(Exception):
                        last()
                    os._exit(CODE)

    thread = threading.Thread(target=watch, daemon=True, name="ifloo-sigterm")
    thread.start()
    _watching = True
    try:
        yield
    finally:
        _watching = False
        signal.set_wakeup_fd(-1)
        over.set()
        writing.shutdown(socket.SHUT_RDWR)  # not only closed: a process forked meanwhile may hold it too
        thread.join()
        reading.close()
        writing.close()


_watching = False


def _forked() -> None:
    """In a process forked meanwhile: its signals are not those of this one."""
    if _watching:
        signal.set_wakeup_fd(-1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
