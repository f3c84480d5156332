"""A run killed at any moment and started again: each refit once, and the same numbers as without the kill."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.running import CHECKOUT, SMALL, done, small
from tests.cli.test_pipeline import lines, read_json, results

MANY = ("--refit.top_k=6", "--refit.random=10", "--refit.null_refits=2")
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


@pytest.fixture(scope="module")
def uninterrupted(scored, tmp_path_factory) -> Path:
    folder = Path(shutil.copytree(scored, tmp_path_factory.mktemp("uninterrupted") / "run"))
    done(small(folder, "loo", *MANY))
    return folder


def assert_same(folder: Path, other: Path) -> None:
    """The same refits in the same order; the preconditioner is that of a run's first refit, and a loss is
    sure to ‖∇L_t‖ ‖∇J‖ / μ only, here up to 1e-7.
    """
    for name in FILES:
        again, once = lines(results(folder) / name), lines(results(other) / name)
        told_by = [(row["id"], row.get("draw")) for row in once]
        assert [(row["id"], row.get("draw")) for row in again] == told_by, name
        assert len(set(told_by)) == len(told_by)
        for a, b in zip(again, once, strict=True):
            assert a.keys() == b.keys()
            assert a["loss"] == pytest.approx(b["loss"], abs=1e-8)
            assert a["grad_norm"] <= 1e-10


def rows_so_far(folder: Path) -> int:
    return sum(p.read_bytes().count(b"\n") for name in FILES if (p := results(folder) / name).exists())


def start(folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "ifloo", "loo", *SMALL, *MANY],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def killed_after(folder: Path, rows: int, then: float) -> None:
    """Starts a run, waits for so many rows more and `then` some seconds, and kills it as no program can refuse."""
    goal = rows_so_far(folder) + rows
    with start(folder) as process:
        while rows_so_far(folder) < goal and process.poll() is None:
            time.sleep(0.005)
        time.sleep(then)
        assert process.poll() is None, process.stderr.read().decode()
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL


def test_a_run_killed_twice_ends_as_one_that_was_not(scored, uninterrupted, tmp_path):
    folder = Path(shutil.copytree(scored, tmp_path / "run"))
    draw = random.Random(0)
    for _ in range(2):
        killed_after(folder, rows=draw.randrange(1, 9), then=draw.uniform(0, 0.05))
        for name in FILES:  # what a kill within a write leaves; by itself it comes too seldom to rely on
            path = results(folder) / name
            if path.exists() and path.stat().st_size and draw.random() < 0.5:
                torn = path.read_bytes().splitlines(keepends=True)[-1][: draw.randrange(1, 40)]
                path.write_bytes(path.read_bytes() + torn)
    done(small(folder, "loo", *MANY))
    assert_same(folder, uninterrupted)


def test_a_torn_last_line_is_computed_again(uninterrupted, tmp_path):
    folder = Path(shutil.copytree(uninterrupted, tmp_path / "run"))
    for name in FILES[1:3]:  # one test's refits and the other's null refits
        path = results(folder) / name
        path.write_bytes(path.read_bytes()[:-15])
    done(small(folder, "loo", *MANY))
    assert_same(folder, uninterrupted)
