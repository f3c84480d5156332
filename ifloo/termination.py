"""Orderly end on SIGTERM, the signal by which Slurm, Kubernetes, systemd and `timeout` end a job."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress

CODE = 128 + signal.SIGTERM  # exit code of a process ended by SIGTERM, as a shell reports it
REPEATED = 8.0  # seconds within which a second signal counts as a repetition of the first: `timeout` sends two
GRACE = 8.0  # seconds that a command has to unwind; Docker kills it after 10


class Terminated(SystemExit):
    """Exception that is raised in the main thread, wherever it is, when the process receives SIGTERM."""

    def __init__(self) -> None:
        super().__init__(CODE)


@contextmanager
def sigterm_unwinds() -> Generator[bool, None, None]:
    """Makes SIGTERM raise `Terminated`, so that files are closed, worker processes end and no file is half-written.

    A handler that is already installed is kept, whether by an outer context or by the program that uses ifloo.
    Lightning, which by default records the signal and continues to the end of a batch, calls the installed handler.
    Python allows signal handlers in the main thread only; in any other thread this context has no effect.

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
    """Makes SIGTERM unwind a whole command, or end the process if unwinding takes longer than `GRACE` seconds.

    The limit is needed because Python runs signal handlers only between bytecode instructions: not within a long call
    of the linear algebra library, nor while it waits for another process. Also, an exception that is raised within a
    destructor is lost.

    Args:
        last: Function to call before the process is ended at the limit.

    Yields:
        An event that is set as soon as the signal arrives: every later failure is a consequence of the signal.
    """
    received = threading.Event()
    with sigterm_unwinds() as ours:
        if ours and os.name == "posix":
            with _watch_thread(received, last):
                yield received
        else:
            yield received


@contextmanager
def _watch_thread(received: threading.Event, last: Callable[[], None]) -> Generator[None, None, None]:
    """Runs a thread that reads signals as they arrive from the file descriptor to which Python writes their numbers."""
    global _watching
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    before = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    if before != -1:  # in use by the event loop of the surrounding program
        signal.set_wakeup_fd(before)
        reading.close()
        writing.close()
        yield
        return
    finished = threading.Event()

    def watch() -> None:
        while numbers := reading.recv(64):
            if signal.SIGTERM in numbers:
                received.set()
                if not finished.wait(GRACE):
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
        finished.set()
        # close() would not suffice: a process forked meanwhile may hold the socket too.
        writing.shutdown(socket.SHUT_RDWR)
        thread.join()
        reading.close()
        writing.close()


_watching = False


def _after_fork() -> None:
    """Detaches a forked process from the thread: its signals are not those of its parent."""
    if _watching:
        signal.set_wakeup_fd(-1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
