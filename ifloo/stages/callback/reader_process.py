"""A process that reads data: what reading them changes, such as a counter, is not changed in the process of the fit."""

from __future__ import annotations

import logging
import logging.handlers
import multiprocessing
import os
import signal
import stat
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeAlias

import torch

from ifloo.data.sample_store import packed, unpacked
from ifloo.errors import WorkError, in_one_line
from ifloo.objective.id_rule import note
from ifloo.objective.user_code import RemoteError

Reads: TypeAlias = Mapping[str, Callable[..., object]]  # functions that read, by name
FIRST_IDLE, IDLE = 20.0, 60.0  # seconds without work after which a process is blocked: in its first call, in later ones
WORKING = 0.01  # part of the time of a processor below which a process does no work
SLICE = 0.2  # seconds between two looks at a process that is waited for
PATIENCE = 1.0  # seconds after which a process that still reads is killed
_PROCESSES = Path("/proc")
_OPEN_FILES = _PROCESSES / "self" / "fd"
_IGNORED = (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGALRM) if os.name == "posix" else ()


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
        ended: Error of a process that has ended by itself or was left since the fit ends; None of any other.
    """

    failure: str | None = None
    ended: WorkError | None = None

    def __init__(self, reads: Reads, stops: Callable[[], bool] = lambda: False) -> None:
        """Forks the process.

        Args:
            reads: Functions that it calls.
            stops: Function that tells whether the fit is to end, so that no answer is waited for.

        Raises:
            OSError: The system refuses.
            AssertionError: This process is one that multiprocessing allows no processes.
        """
        self._reads, self._stops, self._owner, self._limit = reads, stops, os.getpid(), FIRST_IDLE
        context = multiprocessing.get_context("fork")
        self._connection, theirs = context.Pipe()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        self._process = context.Process(target=_serve, args=(reads, theirs, self._connection, mask))
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):  # a stream of the user's may be anything
                stream.flush()  # or the new process would write the text again
        with warnings.catch_warnings():
            # Python warns of locks that other threads hold; this process draws samples as a worker of a loader does.
            warnings.simplefilter("ignore", DeprecationWarning)
            # No handler of the fit's, such as that of a cluster's signals, may run in the new process.
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            try:
                self._process.start()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
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
            if record.name == note.__module__:
                note(record.getMessage())  # once in this process too
            else:
                logging.getLogger(record.name).handle(record)
        if answer.refusal is not None:
            raise self._unable(answer.refusal)
        if answer.error is not None:
            raise answer.error from RemoteError(answer.trace)
        return answer.value

    def _answer(self, request: _Request) -> _Answer:
        if self.ended is not None:
            raise self.ended
        try:
            self._connection.send_bytes(packed(request))
            self._wait()
            answer = unpacked(self._connection.recv_bytes())
        except WorkError:
            raise
        except (EOFError, OSError) as error:
            raise self._end(f"{self._how_it_ended()}; to read the data here might end the fit too") from error
        except Exception as error:  # an object of the user's may refuse to be sent in any way
            raise self._unable(_unsent(error)) from error
        assert isinstance(answer, _Answer)
        self._limit = IDLE
        return answer

    def _wait(self) -> None:
        """Waits until there is an answer, as long as the process works for it.

        Raises:
            WorkError: The process is blocked, or the fit is to end.
            EOFError: The process has ended.
        """
        begun, worked = time.monotonic(), _seconds_of_work(self._process.pid)
        while not self._connection.poll(SLICE):
            if not self._process.is_alive() and not self._connection.poll():
                raise EOFError
            if self._stops():
                raise self._end("it was ended, as the fit is")
            if (now := _seconds_of_work(self._process.pid)) - worked >= WORKING * self._limit:
                begun, worked = time.monotonic(), now
            elif time.monotonic() - begun > self._limit:
                self._process.kill()
                raise self._unable(f"such a process did nothing for {self._limit:.0f} s; it may wait for a thread")

    def _how_it_ended(self) -> str:
        self._process.join(PATIENCE)
        code = self._process.exitcode
        if code is None or code >= 0:
            return f"it ended with exit code {code}"
        hint = " (is there too little memory?)" if code == -signal.SIGKILL else ""
        return f"it was ended by {signal.Signals(-code).name}{hint}"

    def _end(self, how: str) -> WorkError:
        self._process.kill()
        self.ended = WorkError(f"The process that reads the data for scores cannot go on: {how}.")
        return self.ended

    def _unable(self, reason: str) -> WorkError:
        self.failure = reason
        return WorkError(f"The data cannot be read in a process of their own: {reason}.")

    def __enter__(self) -> ReaderProcess:
        return self

    def __exit__(self, *error: object) -> None:
        self._connection.close()  # which ends it
        self._process.join(PATIENCE)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()


def _seconds_of_work(process: int | None) -> float:
    """Returns the time that a process and its children spent on processors; 0 where the system does not tell."""
    try:
        fields = (_PROCESSES / str(process) / "stat").read_text().rpartition(")")[2].split()
        children = [
            x for file in (_PROCESSES / str(process) / "task").glob("*/children") for x in file.read_text().split()
        ]
    except (OSError, ValueError):
        return 0.0
    own = sum(int(field) for field in fields[11:15]) / os.sysconf("SC_CLK_TCK")  # utime, stime, cutime and cstime
    return own + sum(_seconds_of_work(int(child)) for child in children)


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


def _serve(reads: Reads, connection: Connection, parents: Connection, mask: Collection[int]) -> None:
    """Answers until the connection ends."""
    parents.close()  # or its end would not be seen
    _without_handlers()
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
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
            with suppress(Exception):  # there may be none
                sys.stdout.flush()
            connection.send_bytes(answer)


def _without_handlers() -> None:
    """Leaves the signals of the fit to the fit: this process ends with its connection, or by SIGTERM."""
    for number in signal.valid_signals():
        if number in _IGNORED:
            signal.signal(number, signal.SIG_IGN)
        elif callable(signal.getsignal(number)) or number == signal.SIGTERM:
            signal.signal(number, signal.SIG_DFL)


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
    except BaseException as error:  # of the user's code; one that ends a process ends none
        if _of_device(error):
            return packed(_Answer(refusal="the data are on a device"))
        sent = error if isinstance(error, Exception) else RuntimeError(f"{type(error).__name__}: {error}")
        answer = _Answer(error=sent, trace=traceback.format_exc(), records=records.taken())
    try:
        content = packed(answer)
        if answer.error is not None:
            unpacked(content)  # an exception of the user's may be one that can only be sent
    except Exception as error:  # an object of the user's may refuse to be pickled in any way
        return packed(_Answer(refusal=_unsent(error)))
    return content


def _of_device(error: BaseException) -> bool:
    """Whether an error is that of torch on a device in a forked process."""
    text = _text_of(error) if isinstance(error, RuntimeError) else ""
    return "in forked subprocess" in text or ("CUDA" in text and "initialization error" in text)


def _unsent(error: Exception) -> str:
    words = in_one_line(error) if _text_of(error) else type(error).__name__
    return f"what is read cannot be sent to another process ({words})"


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # a class of the user's may have a fault of its own
        return ""


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
