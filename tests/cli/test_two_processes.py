"""`ifloo influence` on two processes: the files of one, said once, and an end of all when one fails."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.cli.running import CHECKOUT, CONFIG, done, ifloo
from tests.cli.test_pipeline import lines, results
from tests.conftest import LONG

N, TESTS = 301, 37  # odd, so that shares differ
ASKED = (
    f"--config={CONFIG}",
    "--data.source=embedded",
    f"--data.train_limit={N}",
    f"--data.test_limit={TESTS}",
    "--trainer.accelerator=cpu",
    "--finish.preconditioner.rank=10",
    "--attribution.corrected=false",
)
GENERAL = (
    "--attribution.corrected=false",
    "--attribution.curvature=ifloo.curvature.Hessian",
    "--attribution.solver={class_path: ifloo.solvers.CG, init_args: {rtol: 1.0e-10, preconditioner: "
    "{class_path: ifloo.solvers.Nystrom, init_args: {rank: 30}}}}",
)
TWO = ("--trainer.strategy=ddp", "--trainer.devices=2")
MATRIX = ("--attribution.test_ids=all", "--attribution.matrix=true")
ONE_BY_ONE = (*MATRIX, *GENERAL, "--attribution.query_block=1")
ENV = {**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def fitted(tmp_path_factory) -> Path:
    """Folder of a base model. Do not write to what is there."""
    folder = tmp_path_factory.mktemp("fitted")
    done(ifloo(folder, "fit", *ASKED))
    return folder


def start(folder: Path, *more: str, start_new_session: bool = False) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "ifloo", "influence", *ASKED, *TWO, *more]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, env=ENV, start_new_session=start_new_session, **pipes)


def on_two(folder: Path, *more: str) -> tuple[int, str, str]:
    """Exit code and what was said; a hang is a failure."""
    with start(folder, *more) as process:
        try:
            out, err = process.communicate(timeout=LONG)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    return process.returncode, out, err


def table(out: str) -> str:
    """What was printed after the progress bar."""
    return out[out.index("\ntest 0 (") :]


slow = pytest.mark.slow  # two processes that import torch


@pytest.mark.parametrize("settings", [pytest.param((), id="head"), pytest.param(GENERAL, id="general", marks=slow)])
def test_listed_tests(fitted, tmp_path, settings):
    listed = "--attribution.test_ids=[0, 8, 3]"
    one = done(ifloo(fitted, "influence", *ASKED, *settings, listed, f"--output_dir={tmp_path / 'one'}"))
    code, out, err = on_two(fitted, *settings, listed, f"--output_dir={tmp_path / 'two'}")
    assert code == 0, err
    assert table(out) == table(one.out)
    assert err.count("MNIST: 301 training") == 1
    assert sorted(p.name for p in (tmp_path / "two").iterdir()) == sorted(p.name for p in (tmp_path / "one").iterdir())
    for t in (0, 8, 3):
        with (
            np.load(tmp_path / "one" / f"influences_test_{t}.npz") as a,
            np.load(tmp_path / "two" / f"influences_test_{t}.npz") as b,
        ):
            largest = abs(a["scores"]).max()
            np.testing.assert_array_equal(b["train_ids"], a["train_ids"])
            np.testing.assert_allclose(b["scores"], a["scores"], rtol=2e-7, atol=1e-12 * largest)
            np.testing.assert_allclose(b["score_mean"], a["score_mean"], rtol=0, atol=1e-12 * largest)
            np.testing.assert_allclose(b["residual"], a["residual"], rtol=1e-3)
            assert {name: str(b[name]) for name in ("status", "method", "settings", "steps")} == {
                name: str(a[name]) for name in ("status", "method", "settings", "steps")
            }


@slow
def test_all_tests_as_a_matrix_and_its_resume(fitted, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    done(ifloo(fitted, "influence", *ASKED, *MATRIX, f"--output_dir={one}"))
    code, out, err = on_two(fitted, *MATRIX, "--attribution.query_block=19", f"--output_dir={two}")
    assert code == 0, err
    assert out == f"{TESTS} tests scored now, {TESTS} in all: {two / 'all_tests' / 'index.jsonl'}\n"
    found, expected = (np.load(folder / "all_tests" / "if_scores.npy", mmap_mode="r") for folder in (two, one))
    # Other blocks: sums of some 4,500 float32 products in another order, √4,500 · 2⁻²⁴ of the largest.
    np.testing.assert_allclose(found, expected, rtol=0, atol=4e-6 * abs(expected).max())
    assert [(row["test_id"], row["row"]) for row in lines(two / "all_tests" / "index.jsonl")] == [
        (t, t) for t in range(TESTS)
    ]
    code, out, err = on_two(fitted, *MATRIX, f"--output_dir={two}")
    assert (code, out) == (0, f"0 tests scored now, {TESTS} in all: {two / 'all_tests' / 'index.jsonl'}\n"), err


@slow
def test_processes_started_by_torchrun(fitted, tmp_path):
    """They are there at once, also where there is nothing left to do."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "ifloo"]
    command = [*torchrun, "influence", *ASKED, *TWO, *MATRIX, f"--output_dir={tmp_path}"]
    for made in (TESTS, 0):
        ran = subprocess.run(command, cwd=fitted, env=ENV, capture_output=True, text=True, timeout=LONG, check=False)
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout == f"{made} tests scored now, {TESTS} in all: {tmp_path / 'all_tests' / 'index.jsonl'}\n"


@pytest.mark.slow
def test_wrong_input_ends_all_with_2(fitted, tmp_path):
    code, out, err = on_two(fitted, "--attribution.test_ids=[99]", f"--output_dir={tmp_path / 'x'}")
    assert (code, out) == (2, "")
    assert err.count("ifloo: error:") == 1


@slow
def test_a_failed_solve_ends_all_with_1(fitted, tmp_path):
    hopeless = "--attribution.solver={class_path: ifloo.solvers.CG, init_args: {rtol: 1.0e-10, max_steps: 2}}"
    code, out, err = on_two(fitted, *MATRIX, *GENERAL[:2], hopeless, f"--output_dir={tmp_path / 'x'}")
    assert (code, out) == (1, "")
    assert err.count("ifloo: failed:") == 1
    assert "CG reached a relative residual of" in err


def children_of(process: "subprocess.Popen[str]") -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            content = stat.read_text()
        except OSError:
            continue
        if int(content.rpartition(")")[2].split()[1]) == process.pid:
            found.append(int(stat.parent.name))
    return found


def is_ifloo(pid: int) -> bool:
    """Whether it runs a command, and nothing that an import asks of the system."""
    try:
        return b"influence" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for_a_row(process: "subprocess.Popen[str]", index: Path) -> None:
    deadline = time.monotonic() + LONG
    while not (index.exists() and index.stat().st_size) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert process.poll() is None, process.stderr.read()


def wait_for_the_end_of(pid: int) -> None:
    gone = time.monotonic() + LONG
    while alive(pid):
        assert time.monotonic() < gone
        time.sleep(0.1)


def goes_on(folder: Path, index: Path) -> None:
    """The same command scores what is missing, and nothing twice."""
    made = index.read_bytes().count(b"\n")
    assert 1 <= made < TESTS
    code, out, err = on_two(folder, *ONE_BY_ONE)
    assert code == 0, err
    assert out.startswith(f"{TESTS - made} tests scored now, {TESTS} in all")
    assert len({row["test_id"] for row in lines(index)}) == len(lines(index)) == TESTS


@slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the other process in /proc")
@pytest.mark.parametrize("whom", ["first", "other"])
def test_no_process_outlives_the_others(fitted, tmp_path, whom):
    """One is killed in the middle; the other ends by itself, and the same command goes on."""
    folder = Path(shutil.copytree(fitted, tmp_path / "run"))
    index = results(folder) / "all_tests" / "index.jsonl"
    with start(folder, *ONE_BY_ONE) as process:
        wait_for_a_row(process, index)
        (other,) = children_of(process)
        os.kill(process.pid if whom == "first" else other, signal.SIGKILL)
        _, err = process.communicate(timeout=LONG)
    assert process.returncode == (-signal.SIGKILL if whom == "first" else 1), err
    if whom == "other":
        assert err.count("ifloo: failed: ") == 1
        assert "Traceback" not in err
    wait_for_the_end_of(other)
    goes_on(folder, index)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the other process in /proc")
@pytest.mark.parametrize("send", [os.kill, os.killpg], ids=["the first", "both"])
def test_sigterm_ends_both_with_one_word(fitted, tmp_path, send):
    folder = Path(shutil.copytree(fitted, tmp_path / "run"))
    index = results(folder) / "all_tests" / "index.jsonl"
    with start(folder, *ONE_BY_ONE, start_new_session=True) as process:
        wait_for_a_row(process, index)
        (other,) = children_of(process)
        send(process.pid, signal.SIGTERM)
        _, err = process.communicate(timeout=LONG)
    assert process.returncode == 143, err
    assert err.count("ifloo: interrupted; the same command goes on from here.\n") == 1
    assert not re.search(r"Traceback|failed|SIGTERM", err)
    wait_for_the_end_of(other)
    goes_on(folder, index)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the other process in /proc")
def test_sigterm_before_they_have_met_ends_both(fitted, tmp_path):
    """The other one finds the first gone when it arrives."""
    with start(fitted, *MATRIX, f"--output_dir={tmp_path}") as process:
        deadline = time.monotonic() + LONG
        while not (others := [pid for pid in children_of(process) if is_ifloo(pid)]) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=LONG)
    assert process.returncode == 143, err
    assert err.count("ifloo: interrupted; the same command goes on from here.\n") == 1
    assert not re.search(r"Traceback|ifloo: failed", err), err
    wait_for_the_end_of(*others)


@pytest.mark.parametrize("command", ["fit", "pipeline"])
def test_a_fit_stays_in_one_process(tmp_path, command):
    refused = ifloo(tmp_path, command, *ASKED, *TWO)
    assert (refused.code, refused.out) == (2, "")
    assert refused.err.endswith(
        f"ifloo: error: `ifloo {command}` fits in one process, got --trainer.strategy ddp, --trainer.devices 2, "
        "--trainer.num_nodes 1: a fit dealt out to several has another objective (shares of unequal size, samples "
        "twice).\n  Use --trainer.devices 1 here; `ifloo influence` takes as many devices as there are.\n"
    )


def test_other_strategies_are_refused(fitted, tmp_path):
    refused = ifloo(fitted, "influence", *ASKED, "--trainer.strategy=ddp_spawn", f"--output_dir={tmp_path}")
    assert refused.code == 2
    assert refused.err.endswith(
        "ifloo: error: Scores are made under --trainer.strategy auto or ddp, got ddp_spawn.\n"
        "  Each process needs the whole model and is started by the command line (no spawn, fork, FSDP, ...).\n"
    )
