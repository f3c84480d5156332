"""All tests through the command: three forms, a kill in the middle, refusals."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.cli.running import CHECKOUT, CONFIG, contents, done, ifloo
from tests.cli.test_pipeline import lines, results

N, TESTS = 61, 12
SOLVER = (
    "--attribution.solver={class_path: ifloo.solvers.CG, init_args: {rtol: 1.0e-10, preconditioner: "
    "{class_path: ifloo.solvers.Nystrom, init_args: {rank: 10}}}}"
)
ASKED = (
    f"--config={CONFIG}",
    "--data.source=embedded",
    f"--data.train_limit={N}",
    f"--data.test_limit={TESTS}",
    "--trainer.accelerator=cpu",
    "--finish.preconditioner.rank=10",
    "--attribution.test_ids=all",
    SOLVER,
)
MATRIX = (*ASKED, "--attribution.matrix=true", "--attribution.query_block=1")


@pytest.fixture(scope="module")
def fitted(tmp_path_factory) -> Path:
    """Folder of a base model. Do not write here."""
    folder = tmp_path_factory.mktemp("fitted")
    done(ifloo(folder, "fit", *ASKED))
    return folder


@pytest.fixture(scope="module")
def whole(fitted, tmp_path_factory) -> Path:
    """Folder of a matrix made in one go. Do not write here."""
    folder = Path(shutil.copytree(fitted, tmp_path_factory.mktemp("whole") / "run"))
    done(ifloo(folder, "influence", *MATRIX))
    return folder


def stored(folder: Path) -> Path:
    return results(folder) / "all_tests"


def start(folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "ifloo", "influence", *MATRIX],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


@pytest.mark.slow
def test_a_killed_matrix_is_gone_on_with(fitted, whole, tmp_path):
    folder = Path(shutil.copytree(fitted, tmp_path / "run"))
    index = stored(folder) / "index.jsonl"
    with start(folder) as process:
        while not (index.exists() and index.read_bytes().count(b"\n") >= 3) and process.poll() is None:
            time.sleep(0.002)
        assert process.poll() is None, process.stderr.read().decode()
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    made = len(index.read_bytes().splitlines())
    assert 3 <= made < TESTS
    assert sorted(p.name for p in stored(folder).iterdir()) == ["if_scores.npy.part", "index.jsonl"]
    with open(index, "ab") as file:
        file.write(b'{"test_id": 11, "pa')  # a kill within the write of a line
    said = done(ifloo(folder, "influence", *MATRIX))
    assert f"{TESTS - made} tests scored now, {TESTS} in all" in said.out
    assert sorted(p.name for p in stored(folder).iterdir()) == ["if_scores.npy", "index.jsonl"]
    found, expected = (np.load(stored(f) / "if_scores.npy", mmap_mode="r") for f in (folder, whole))
    np.testing.assert_array_equal(found, expected)
    assert [(row["test_id"], row["row"]) for row in lines(index)] == [(t, t) for t in range(TESTS)]


def test_forms_agree_and_are_not_mixed(whole, tmp_path):
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    before = contents(folder)
    for other in (ASKED, (*ASKED, "--attribution.topk_only=true")):
        refused = ifloo(folder, "influence", *other)
        assert (refused.code, refused.out) == (2, "")
        assert "holds scores of all tests as one matrix (attribution: matrix); asked for" in refused.err
        now = contents(folder)
        assert {name for name in before if before[name] != now[name]} <= {"outputs/mnist/manifest.json"}
    matrix = np.load(stored(folder) / "if_scores.npy")
    again = done(ifloo(folder, "influence", *MATRIX))
    assert f"0 tests scored now, {TESTS} in all" in again.out

    top = (*ASKED, "--attribution.topk_only=true", "--attribution.top_k=5", "--overwrite")
    done(ifloo(folder, "influence", *top))
    assert sorted(p.name for p in stored(folder).iterdir()) == ["index.jsonl", "topk.npz"]
    with np.load(stored(folder) / "topk.npz") as found:
        assert {name: found[name].shape for name in found} == {
            "test_ids": (TESTS,),
            "ids": (TESTS, 5),
            "scores": (TESTS, 5),
            "mean": (TESTS,),
        }
        # In another block: sums of some 4,500 float32 products in another order, √4,500 · 2⁻²⁴ of the largest.
        close = {"rtol": 0, "atol": 4e-6 * abs(matrix).max()}
        np.testing.assert_allclose(found["scores"], np.take_along_axis(matrix, found["ids"], 1), **close)
        np.testing.assert_allclose(found["mean"], matrix.mean(1), **close)
    for row in lines(stored(folder) / "index.jsonl"):
        assert row["residual"] <= 1e-10
        assert row["error_bound"] > 0
        assert row["status"] == "CONVERGED"


def test_two_forms_at_once_are_refused(fitted):
    refused = ifloo(fitted, "influence", *MATRIX, "--attribution.topk_only=true")
    assert refused.code == 2
    assert "attribution.matrix and attribution.topk_only are two forms of the same output; give one of" in refused.err
