"""A process that reads data: what reading them changes, such as a counter, is not changed in the process of the fit."""

from __future__ import annotations

import logging
import logging.handlers
import multiprocessing
import os
import signal
import stat
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeAlias

import torch
from typing_extensions import Self

from ifloo.data.sample_store import packed, unpacked
from ifloo.errors import WorkError, in_one_line
from ifloo.objective.user_code import RemoteError

Reads: TypeAlias = Mapping[str, Callable[..., object]]  # functions that read, by name
PLACE = "a worker process that reads the data"
PATIENCE = 1.0  # seconds after which a process that still reads is killed
_OPEN_FILES = Path("/proc/self/fd")
_NO_DEVICE = ("in forked subprocess", "bad fork")  # parts of the texts of torch about data that are on a device


def can_fork() -> bool:
    """Tells whether a process can be made that begins with a copy of the memory of this one.

    On macOS it can, but the system's own libraries may then end it, which is why Python starts no process so there.
    """
    return "fork" in multiprocessing.get_all_start_methods() and sys.platform != "darwin"


class ReaderProcess:
    """A process forked from this one that calls functions for it, one at a time, and sends what they return.

    The functions and all that they reach are there as they were when it was made, and stay so here. As a context it is
    ended on exit.

    Attributes:
        failure: Reason why the process cannot serve, such as a sample that cannot be sent; None while it can.
    """

    failure: str | None = None

    def __init__(self, reads: Reads) -> None:
        """Forks the process.

        Raises:
            OSError: The system refuses.
            AssertionError: This process is one that multiprocessing allows no processes.
        """
        self._reads, self._owner = reads, os.getpid()
        context = multiprocessing.get_context("fork")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(reads, theirs, self._connection))
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):  # a stream of the user's may be anything
                stream.flush()  # or the new process would write the text again
        with warnings.catch_warnings():
            # Python warns of locks that other threads hold; this process draws samples as a worker of a loader does.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._process.start()
        theirs.close()

    def call(self, name: str, *arguments: object) -> object:
        """Calls a function in the process; within a worker process of a loader, which is one already, there.

        Raises:
            WorkError: The process cannot serve; `failure` is the reason.
            Exception: The function failed.
        """
        if os.getpid() != self._owner:
            own_file_positions()
            return self._reads[name](*arguments)
        answer = self._answer(_Request(name, arguments))
        for record in answer.records:
            logging.getLogger(record.name).handle(record)
        if answer.refusal is not None:
            raise self._unable(answer.refusal)
        if answer.error is not None:
            raise answer.error from RemoteError(answer.trace)
        return answer.value

    def _answer(self, request: _Request) -> _Answer:
        try:
            self._connection.send_bytes(packed(request))
            answer = unpacked(self._connection.recv_bytes())
        except (EOFError, OSError) as error:
            raise self._unable(f"{PLACE} has ended ({type(error).__name__})") from error
        except Exception as error:  # an object of the user's may refuse to be sent in any way
            raise self._unable(_unsent(error)) from error
        assert isinstance(answer, _Answer)
        return answer

    def _unable(self, reason: str) -> WorkError:
        self.failure = reason
        return WorkError(f"The data cannot be read in a process of their own: {reason}.")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._connection.close()  # which ends it
        self._process.join(PATIENCE)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()


def own_file_positions() -> None:
    """Gives this process positions of its own in the files that it reads; a fork shares them with its parent.

    Raises nothing: where the system lists no open files, or forbids to open one again, positions stay shared.
    """
    global _owner_of_positions
    if os.getpid() == _owner_of_positions:
        return
    _owner_of_positions = os.getpid()
    with suppress(OSError):
        for file in [int(name) for name in os.listdir(_OPEN_FILES)]:
            with suppress(OSError):
                _open_again(file)


_owner_of_positions: int | None = None


def _open_again(file: int) -> None:
    import fcntl  # absent on Windows, which has no fork either

    flags = fcntl.fcntl(file, fcntl.F_GETFL)
    if file <= 2 or not stat.S_ISREG(os.fstat(file).st_mode) or flags & os.O_ACCMODE == os.O_WRONLY:
        return
    own = os.open(_OPEN_FILES / str(file), flags & (os.O_ACCMODE | os.O_APPEND))
    os.lseek(own, os.lseek(file, 0, os.SEEK_CUR), os.SEEK_SET)
    os.dup2(own, file, os.get_inheritable(file))
    os.close(own)


def _serve(reads: Reads, connection: Connection, parents: Connection) -> None:
    """Answers until the connection ends."""
    parents.close()  # or its end would not be seen
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal, for the fit
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)  # the threads of the parent are not here
    own_file_positions()
    records = _Records()
    logger = logging.getLogger("ifloo")
    logger.handlers, logger.propagate = [records], False
    with suppress(EOFError, OSError):
        while True:
            request = unpacked(connection.recv_bytes())
            assert isinstance(request, _Request)
            answer = _answered(reads[request.name], request.arguments, records)
            sys.stdout.flush()
            connection.send_bytes(answer)


@dataclass(frozen=True)
class _Request:
    """Name of a function, and its arguments."""

    name: str
    arguments: tuple[object, ...]


@dataclass(frozen=True)
class _Answer:
    """Answer to a request.

    Attributes:
        value: Result of the function.
        error: Exception of the function.
        trace: Traceback of the exception.
        refusal: Reason why neither can be sent.
        records: What was logged.
    """

    value: object = None
    error: Exception | None = None
    trace: str = ""
    refusal: str | None = None
    records: tuple[logging.LogRecord, ...] = ()


def _answered(read: Callable[..., object], arguments: tuple[object, ...], records: _Records) -> bytes:
    """Calls a function and packs its answer."""
    try:
        answer = _Answer(read(*arguments), records=records.taken())
    except Exception as error:  # of the user's code
        if any(part in str(error) for part in _NO_DEVICE):
            return packed(_Answer(refusal="the data are on a device"))
        answer = _Answer(error=error, trace=traceback.format_exc(), records=records.taken())
    try:
        content = packed(answer)
        if answer.error is not None:
            unpacked(content)  # an exception of the user's may be one that can only be sent
    except Exception as error:  # an object of the user's may refuse to be pickled in any way
        return packed(_Answer(refusal=_unsent(error)))
    return content


def _unsent(error: Exception) -> str:
    return f"what is read cannot be sent to another process ({in_one_line(error)})"


class _Records(logging.handlers.QueueHandler):
    """Handler that keeps records in a form that can be sent."""

    def __init__(self) -> None:
        self.kept: list[logging.LogRecord] = []
        super().__init__(self.kept)  # type: ignore[arg-type]  # `enqueue` is the only use of it

    def enqueue(self, record: logging.LogRecord) -> None:
        self.kept.append(record)

    def taken(self) -> tuple[logging.LogRecord, ...]:
        """Returns the records since the last call."""
        taken = tuple(self.kept)
        self.kept.clear()
        return taken
