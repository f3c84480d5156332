"""A reader process that is blocked, ends or receives signals, and data that it cannot keep apart: the fit goes on."""

import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from ifloo.errors import WorkError
from ifloo.stages import InfluenceCallback
from ifloo.stages.callback import data_reads, reader_process
from ifloo.stages.callback.data_reads import DataReads
from ifloo.stages.callback.reader_process import ReaderProcess
from tests.stages.callback.fits import Stated, fitted, loader, samples
from tests.stages.callback.stateful_data import Noisy

POOL = ThreadPoolExecutor(1)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING and r.name.startswith("ifloo")]


def scores_of(folder: Any) -> bool:
    return (folder / "influence" / "epoch_003" / "influences_test_0.npz").exists()


def elsewhere(act: Callable[[], object]) -> Noisy:
    """Data whose reads act in any process but this one."""
    owner = os.getpid()

    def noise() -> float:
        if os.getpid() != owner:
            act()
        return 0.0

    return Noisy(noise)


@pytest.fixture
def impatient(monkeypatch):
    for name in ("FIRST_IDLE", "IDLE"):
        monkeypatch.setattr(reader_process, name, 0.5)


def test_a_process_that_waits_for_ever_is_left_and_a_copy_is_read(tmp_path, caplog, impatient):
    fitted(Stated(), loader(elsewhere(threading.Event().wait)), [InfluenceCallback(samples(2)[:])], tmp_path)
    (line,) = [text for text in warnings_of(caplog) if "process" in text]
    assert "did nothing for" in line
    assert scores_of(tmp_path)
    assert not multiprocessing.active_children()


def test_a_process_that_works_longer_than_it_may_wait_is_waited_for(impatient):
    def work() -> int:
        end = time.process_time() + 1.5
        while time.process_time() < end:
            pass
        return 1

    with ReaderProcess({"work": work}) as process:
        assert process.call("work") == 1


class OfAThread(Noisy):
    """Reads in a thread of its own."""

    def __init__(self, pool: ThreadPoolExecutor | None) -> None:
        super().__init__(lambda: 0.0)
        self.pool = pool

    def __getitem__(self, i: int) -> Any:
        return (self.pool or POOL).submit(super().__getitem__, i).result()


@pytest.mark.parametrize("own", [True, False])
def test_data_that_use_threads_are_read_here(tmp_path, caplog, monkeypatch, own):
    data = OfAThread(ThreadPoolExecutor(1) if own else None)
    first = data[0]
    monkeypatch.setattr(data_reads, "ReaderProcess", None)
    fitted(Stated(), loader(data), [InfluenceCallback(samples(2)[:])], tmp_path)
    (line,) = [text for text in warnings_of(caplog) if "process" in text]
    assert "threads of this process" in line
    assert scores_of(tmp_path)
    assert torch.equal(first[0], data[0][0])


ENDS: dict[str, tuple[Callable[[], object], str]] = {
    "exit": (lambda: os._exit(3), "exit code 3"),
    "killed": (lambda: os.kill(os.getpid(), signal.SIGKILL), "SIGKILL"),
    "terminated": (lambda: os.kill(os.getpid(), signal.SIGTERM), "SIGTERM"),
}


@pytest.mark.parametrize("name", ENDS)
def test_a_process_that_ends_by_itself_ends_the_scoring_and_nothing_is_read_here(tmp_path, caplog, name):
    act, how = ENDS[name]
    fitted(Stated(), loader(elsewhere(act)), [InfluenceCallback(samples(2)[:], every_n_epochs=1)], tmp_path)
    (line,) = warnings_of(caplog)
    assert how in line
    assert not scores_of(tmp_path)


def test_one_that_ends_later_is_one_line_too(tmp_path, caplog):
    ends = False

    class Ends(Stated):
        def on_train_epoch_end(self) -> None:
            nonlocal ends
            ends = True

    data = elsewhere(lambda: os._exit(3) if ends else None)
    fitted(Ends(), loader(data), [InfluenceCallback(samples(2)[:], every_n_epochs=1)], tmp_path)
    (line,) = [text for text in warnings_of(caplog) if "process" in text]
    assert "No influence scores" in line


def test_strict_raises_what_ended_the_process(tmp_path):
    callback = InfluenceCallback(samples(2)[:], strict=True)
    with pytest.raises(WorkError, match="exit code 3"):
        fitted(Stated(), loader(elsewhere(lambda: os._exit(3))), [callback], tmp_path)


def test_sys_exit_in_the_data_is_an_error_of_theirs():
    with ReaderProcess({"read": lambda: sys.exit(3)}) as process:
        with pytest.raises(RuntimeError, match="SystemExit: 3"):
            process.call("read")
        assert process.failure is process.ended is None


def test_an_answer_is_not_waited_for_where_the_fit_is_to_end():
    stops = threading.Event()
    threading.Timer(0.3, stops.set).start()
    with (
        ReaderProcess({"read": threading.Event().wait}, stops.is_set) as process,
        pytest.raises(WorkError, match="as the fit is"),
    ):
        process.call("read")


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGALRM, signal.SIGINT])
def test_no_handler_of_the_fit_runs_in_the_process(tmp_path, number):
    before = signal.signal(number, lambda *_: (tmp_path / str(os.getpid())).touch())
    try:
        with ReaderProcess({"read": lambda: os.kill(os.getpid(), number)}) as process:
            process.call("read")
            assert process.failure is process.ended is None
        assert not list(tmp_path.iterdir())
        os.kill(os.getpid(), number)
        assert (tmp_path / str(os.getpid())).exists()
    finally:
        signal.signal(number, before)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()


class SilentError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def failing(error: Exception) -> Callable[[], None]:
    def read() -> None:
        raise error

    return read


@pytest.mark.parametrize(
    "error", [ValueError("CUDA initialization error"), RuntimeError("initialization error"), SilentError()]
)
def test_an_error_of_the_users_is_none_of_a_device(error):
    with ReaderProcess({"read": failing(error)}) as process:
        with pytest.raises(type(error)):
            process.call("read")
        assert process.failure is None


@pytest.mark.parametrize(
    "text", ["CUDA error: initialization error", "Cannot re-initialize CUDA in forked subprocess."]
)
def test_an_error_of_a_device_is_a_reason(text):
    with ReaderProcess({"read": failing(RuntimeError(text))}) as process:
        with pytest.raises(WorkError, match="on a device"):
            process.call("read")
        assert process.failure is not None


def test_there_may_be_no_stdout(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with ReaderProcess({"read": lambda: 1}) as process:
        assert process.call("read") == 1


def mapped(folder: Any, mode: Any) -> Any:
    np.save(folder / "x.npy", np.zeros(3))
    return np.lib.format.open_memmap(folder / "x.npy", mode=mode)


SHARED: dict[str, Callable[[Any], Any]] = {
    "tensor": lambda _: torch.zeros(3).share_memory_(),
    "Synchronized": lambda _: multiprocessing.Value("i"),
    "memmap": lambda folder: mapped(folder, "r+"),
}


@pytest.mark.parametrize("name", SHARED)
def test_one_line_warns_of_memory_that_processes_share(tmp_path, caplog, name):
    data = Noisy(lambda: 0.0)
    data.cache = SHARED[name](tmp_path)  # type: ignore[attr-defined]  # as users give attributes
    fitted(Stated(), loader(data), [InfluenceCallback(samples(2)[:])], tmp_path)
    (line,) = [text for text in warnings_of(caplog) if "may change the fit" in text]
    assert name in line


def test_a_memmap_for_reading_is_none_of_it(tmp_path, caplog):
    data = Noisy(lambda: 0.0)
    data.cache = mapped(tmp_path, "r")  # type: ignore[attr-defined]  # as users give attributes
    DataReads().once(lambda one: len(one), loader(data))
    assert not warnings_of(caplog)


def test_text_that_is_not_yet_in_a_file_is_written_once(tmp_path):
    with (tmp_path / "log.txt").open("w") as file:
        file.write("before\n")

        def noise() -> float:
            file.write("read\n")
            file.flush()
            return 0.0

        DataReads().once(lambda one: one.dataset[0], loader(Noisy(noise)))
    assert (tmp_path / "log.txt").read_text().splitlines() == ["before", "read"]


def test_tensors_in_memory_alone_are_read_here(tmp_path, monkeypatch):
    monkeypatch.setattr(data_reads, "ReaderProcess", None)
    fitted(Stated(), loader(), [InfluenceCallback(samples(2)[:], strict=True)], tmp_path)
    assert scores_of(tmp_path)
    for queries in (samples(2), DataLoader(samples(2)), [samples(2)[0]]):
        assert data_reads.only_memory(queries)
    assert not data_reads.only_memory([TensorDataset(torch.zeros(1)), Noisy(lambda: 0.0)])


def test_where_no_process_is_queries_are_read_from_a_copy(tmp_path, monkeypatch, caplog):
    class Counted(Noisy):
        count = 0

        def __getitem__(self, i: int) -> Any:
            self.count += 1
            return self.base[i]

    monkeypatch.setattr(data_reads, "can_fork", lambda: False)
    queries = Counted(lambda: 0.0)
    fitted(Stated(), loader(), [InfluenceCallback(queries, strict=True)], tmp_path)
    assert queries.count == 0
    assert scores_of(tmp_path)
    assert sum("from a copy" in text for text in warnings_of(caplog)) == 1
