"""`--refit.devices 2`: ended, killed or robbed of a worker, it ends as one process does, and leaves nothing."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path

import psutil
import pytest

from tests.cli.running import CHECKOUT, SMALL, done, small
from tests.cli.test_pipeline import lines, read_json, results
from tests.conftest import LONG

pytestmark = pytest.mark.slow  # each run starts three processes that import torch
MANY = ("--refit.random=40", "--refit.replicas=1")
FILES = tuple(f"{folder}loo_losses_test_{t}.jsonl" for folder in ("", "null/") for t in (0, 8))


@pytest.fixture(scope="module")
def scored(experiment, tmp_path_factory) -> Path:
    """The experiment before any refit."""
    folder = Path(shutil.copytree(experiment, tmp_path_factory.mktemp("scored") / "run"))
    for name in FILES:
        (results(folder) / name).unlink()
    manifest = read_json(results(folder) / "manifest.json")
    del manifest["loo"]
    (results(folder) / "manifest.json").write_text(json.dumps(manifest))
    return folder


@contextlib.contextmanager
def heard(sent: signal.Signals) -> Generator[None, None, None]:
    """Processes begun in here hear a signal, also where whoever began the tests has these ignore it, as `&` does."""
    before = signal.signal(sent, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(sent, before)


@contextlib.contextmanager
def started(folder: Path) -> Generator[subprocess.Popen[str], None, None]:
    """The command on two workers, in a process group of its own as a shell would start it, with rows of its own."""
    before = rows(folder)
    with (
        heard(signal.SIGINT),
        subprocess.Popen(
            [sys.executable, "-m", "ifloo", "loo", *SMALL, *MANY, "--refit.devices=2"],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1", "TMPDIR": str(folder.parent)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process,
    ):
        try:
            wait_for(lambda: rows(folder) > before + 2 or process.poll() is not None)
            assert process.poll() is None, process.stderr.read()
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def rows(folder: Path) -> int:
    path = results(folder) / FILES[0]
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for(condition, seconds: float = LONG) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    found = psutil.Process(process.pid).children()
    return [child for child in found if any("spawn_main" in word for word in child.cmdline())]


def gone(processes: list[psutil.Process]) -> bool:
    return not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes)


@pytest.fixture(scope="module")
def alone(scored, tmp_path_factory) -> list[dict]:
    """Rows of one process."""
    folder = Path(shutil.copytree(scored, tmp_path_factory.mktemp("alone") / "run"))
    done(small(folder, "loo", *MANY))
    return told_apart(folder)


def told_apart(folder: Path) -> list[dict]:
    """The rows of each file by what was refitted."""
    every = []
    for name in FILES:
        found = lines(results(folder) / name)
        every.append({(row["id"], row.get("draw")): row for row in found})
        assert len(every[-1]) == len(found)
    return every


def assert_same(folder: Path, alone: list[dict]) -> None:
    for ours, theirs in zip(told_apart(folder), alone, strict=True):
        assert ours.keys() == theirs.keys()
        for key, row in ours.items():
            expected = {name: value for name, value in theirs[key].items() if name != "seconds"}
            assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-9, abs=1e-12)


ENDS = {
    "Ctrl-C reaches all processes of a terminal": (signal.SIGINT, os.killpg, 130),
    "SIGTERM reaches the one that is known": (signal.SIGTERM, os.kill, 143),
    "SIGTERM reaches all processes of a job": (signal.SIGTERM, os.killpg, 143),
}


@pytest.mark.parametrize(("sent", "send", "code"), ENDS.values(), ids=ENDS)
def test_a_signal_ends_it_and_one_process_goes_on_from_there(scored, alone, tmp_path, sent, send, code):
    folder = Path(shutil.copytree(scored, tmp_path / "run"))
    with started(folder) as process:
        crew = workers(process)
        assert len(crew) == 2
        send(process.pid, sent)
        _, said = process.communicate(timeout=LONG)
        assert process.returncode == code, said
        assert said.endswith("ifloo: interrupted; the same command goes on from here.\n")
        assert "Traceback" not in said
        assert gone(crew)
        assert not list(tmp_path.glob("ifloo-refits-*"))
    assert rows(folder) < len(alone[0])
    done(small(folder, "loo", *MANY))
    assert_same(folder, alone)


def test_killed_it_goes_on_by_the_same_command_even_without_a_worker(scored, alone, tmp_path):
    folder = Path(shutil.copytree(scored, tmp_path / "run"))
    with started(folder) as process:
        crew = workers(process)
        process.kill()
        wait_for(lambda: gone(crew))
    assert rows(folder) < len(alone[0])
    with started(folder) as process:
        workers(process)[0].kill()
        _, said = process.communicate(timeout=LONG)
        assert process.returncode == 0, said
        assert "Traceback" not in said
    assert_same(folder, alone)
    recorded = read_json(results(folder) / "manifest.json")["loo"]["recorded"]
    assert (recorded["devices"], recorded["cluster"], recorded["unit"]) == (2, None, 1)
