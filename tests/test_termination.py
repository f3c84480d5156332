"""SIGTERM unwinds what is at work, once, and ends a command that does not unwind."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from ifloo import termination
from ifloo.termination import Terminated, ended_by_sigterm, sigterm_unwinds
from tests.conftest import CHECKOUT, LONG

pytestmark = pytest.mark.skipif(os.name != "posix", reason="Windows has no SIGTERM that a process could handle")


def handler() -> object:
    return signal.getsignal(signal.SIGTERM)


def test_it_is_raised_where_the_process_is_at_work_and_the_handler_is_taken_back():
    before, cleaned = handler(), False

    def work():
        nonlocal cleaned
        with sigterm_unwinds() as ours:
            assert ours
            try:
                signal.raise_signal(signal.SIGTERM)
            finally:
                cleaned = True

    with pytest.raises(Terminated) as caught:
        work()
    assert (caught.value.code, cleaned) == (143, True)
    assert handler() is before is signal.SIG_DFL


def test_a_second_signal_at_once_does_not_cut_the_cleaning_short(monkeypatch):
    cleaned = False

    def work():
        nonlocal cleaned
        with sigterm_unwinds():
            try:
                signal.raise_signal(signal.SIGTERM)
            finally:
                signal.raise_signal(signal.SIGTERM)
                cleaned = True

    with pytest.raises(Terminated):
        work()
    assert cleaned
    monkeypatch.setattr(termination, "REPEATED", 0.0)  # later it does
    with sigterm_unwinds():
        for _ in range(2):
            with pytest.raises(Terminated):
                signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("context", [sigterm_unwinds, lambda: ended_by_sigterm(lambda: None)])
def test_a_handler_that_is_there_stays(context):
    noted = []
    signal.signal(signal.SIGTERM, lambda *_: noted.append(handler()))
    try:
        own = handler()
        with context():
            signal.raise_signal(signal.SIGTERM)
        assert noted == [own]
        assert handler() is own
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_an_inner_context_leaves_it_to_the_outer_one():
    with sigterm_unwinds():
        outer = handler()
        with sigterm_unwinds() as ours:
            assert not ours
            assert handler() is outer
        assert handler() is outer


def test_another_thread_handles_no_signals():
    found = []

    def work():
        with sigterm_unwinds() as ours:
            found.append((ours, handler()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(False, signal.SIG_DFL)]


def test_a_command_knows_that_the_signal_came_and_keeps_no_thread():
    before = set(threading.enumerate())

    def work():
        with ended_by_sigterm(lambda: None) as received:
            try:
                signal.raise_signal(signal.SIGTERM)
            finally:
                assert received.wait(LONG)

    with pytest.raises(Terminated):
        work()
    assert set(threading.enumerate()) == before
    assert signal.set_wakeup_fd(-1) == -1


def program(text: str) -> subprocess.CompletedProcess[str]:
    """Runs a program for which a command may take half a second to unwind."""
    head = "import os, signal, time\nfrom ifloo import termination\ntermination.GRACE = 0.5\n"
    env = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    command = [sys.executable, "-c", head + text]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=LONG, check=False)


def test_what_does_not_unwind_is_ended():
    """An exception that is lost, as within a destructor, or never raised, as within a call that takes minutes."""
    ran = program("""
with termination.ended_by_sigterm(lambda: print("the word", flush=True)):
    while True:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        except SystemExit:
            pass
""")
    assert (ran.returncode, ran.stdout, ran.stderr) == (143, "the word\n", "")


def test_the_signal_of_a_forked_process_is_its_own():
    ran = program("""
with termination.ended_by_sigterm(lambda: print("the word", flush=True)) as received:
    child = os.fork()
    if not child:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        except termination.Terminated as error:
            os._exit(error.code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    print(received.wait(1.5))
""")
    assert (ran.returncode, ran.stdout) == (0, "143\nFalse\n"), ran.stderr
