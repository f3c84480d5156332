"""A test of the gallery whose optional packages are missing is skipped, or fails where the gallery is required."""

import os
import subprocess
import sys

import pytest

from tests.conftest import CHECKOUT, LONG

ABSENT = "raise ModuleNotFoundError(\"No module named 'peft'\", name='peft')\n"


@pytest.mark.slow
@pytest.mark.parametrize(("value", "code", "shown"), [("", 0, "1 skipped"), ("required", 1, "1 failed")])
def test_a_skipped_test_is_a_failed_one_where_the_gallery_is_required(value, code, shown, tmp_path):
    (tmp_path / "peft.py").write_text(ABSENT)
    test = "tests/gallery/test_gallery_scores.py::test_the_predictor_gives_what_plain_autograd_gives[BERT]"
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test],
        cwd=CHECKOUT,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "IFLOO_GALLERY": value, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=LONG,
    )
    assert run.returncode == code, run.stdout + run.stderr
    assert shown in run.stdout
