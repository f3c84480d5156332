"""Several processes, one result: every sample once, in the order of one process, to rounding in float64."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from ifloo.stages.distributed.process_group import ProcessGroup
from tests.conftest import CHECKOUT, LONG
from tests.stages.distributed import shared_pass


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [0, 1, 2, 15, 16, 17, 301])
@pytest.mark.parametrize("unit", [1, 16])
def test_shares_are_everything_once(size, count, unit):
    shares = [ProcessGroup(0, size).share(count, unit, of=rank) for rank in range(size)]
    assert [i for share in shares for i in range(share.start, share.stop)] == list(range(count))
    assert all(share.start % unit == 0 or share.start == count for share in shares)
    sizes = [share.stop - share.start for share in shares]
    assert max(sizes) - min(sizes) <= unit


def scored(folder: Path, devices: int, n: int, kind: str) -> dict[str, np.ndarray]:
    path = folder / f"{devices}.npz"
    if devices == 1:
        with warnings.catch_warnings():
            shared_pass.main(devices, n, kind, str(path))
        return arrays(path)
    env = {**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, shared_pass.__file__, str(devices), str(n), kind, str(path)]
    ran = subprocess.run(command, env=env, capture_output=True, text=True, timeout=LONG, check=False)
    assert ran.returncode == 0, ran.stderr
    return arrays(path)


def arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


slow = pytest.mark.slow  # two processes that import torch


@pytest.mark.parametrize(
    ("n", "kind"), [pytest.param(31, "head", marks=slow), (31, "general"), pytest.param(1, "general", marks=slow)]
)
def test_two_processes_give_the_scores_of_one(tmp_path, n, kind):
    """Also fewer samples than processes."""
    one, two = (scored(tmp_path, devices, n, kind) for devices in (1, 2))
    np.testing.assert_array_equal(two["ids"], one["ids"])
    assert one["value"].dtype == np.float64
    np.testing.assert_allclose(two["value"], one["value"], rtol=1e-12, atol=1e-12 * abs(one["value"]).max())
    np.testing.assert_allclose(two["mean"], one["mean"], rtol=0, atol=1e-12 * abs(one["value"]).max())
    np.testing.assert_allclose(two["residual"], one["residual"], rtol=1e-6, atol=1e-16)


@slow
def test_what_two_processes_make_of_a_failure(tmp_path):
    program = Path(__file__).with_name("company.py")
    env = {**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, str(program), str(rank), str(tmp_path / "meeting")],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        said = [process.communicate(timeout=LONG) for process in started]
    finally:
        for process in started:
            process.kill()
    (first, err), (other, _) = said
    assert first.splitlines() == [
        "input: InputError: process 1 of 2: wrong",
        "work: WorkError: process 1 of 2: did not converge",
        "fault: WorkError: process 1 of 2: KeyError: 'x'",
        "first: WorkError: disk full",
        "memory: MemoryError: CUDA out of memory.",
        "memory and more: InputError: process 1 of 2: wrong",
        "nothing: went on",
        "['plan'] [0, 1]",
        str([1] * 16 + [2] * 4),
        "[[1], [1]]",  # a single sample is the last one's
        "[[0, 0, 1, 1, 1], [0, 0, 1, 1, 1]]",
    ]
    assert other.splitlines()[:7] == [
        "input: SystemExit: 0",
        "work: SystemExit: 0",
        "fault: SystemExit: 0",
        "first: SystemExit: 0",
        "memory: MemoryError: CUDA out of memory.",
        "memory and more: SystemExit: 0",
        "nothing: went on",
    ]
    assert "WorkError: One of the 2 processes was lost (" in err
