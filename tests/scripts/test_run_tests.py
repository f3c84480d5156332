"""What the scripts of the test suite give to pytest, with a Python that writes down its arguments instead."""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import CHECKOUT, LONG

TWO = ["-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"]
PYTHON = """#!/usr/bin/env bash
if [ "$1" = - ]; then cat >/dev/null; exit 0; fi  # which modules there are: all
printf '%s\\n' "threads=${OMP_NUM_THREADS:-}" "$@" >>"$ARGUMENTS"
echo "a line of pytest"
case " ${ATEN_CPU_CAPABILITY:-} " in *" ${FAILS:-no} "*) exit 1 ;; esac
"""


@dataclass(frozen=True)
class Ran:
    """What came of a script.

    Attributes:
        code: Exit code.
        out: Standard output.
        err: Standard error.
        calls: Arguments of each run of Python, with the threads asked for as the first.
    """

    code: int
    out: str
    err: str
    calls: list[list[str]]

    @property
    def arguments(self) -> list[str]:
        """What pytest was given by the only run."""
        ((_, *arguments),) = self.calls
        assert arguments[:2] == ["-m", "pytest"]
        return arguments[2:]


@pytest.fixture
def script(tmp_path):
    """Runs a script in a folder that looks like the checkout and has no environment of its own."""
    (tmp_path / "scripts").mkdir()
    for name in ("run_tests.sh", "check_all.sh", "environment.sh"):
        shutil.copy(CHECKOUT / "scripts" / name, tmp_path / "scripts")
    for path in ("tests/solvers/test_a.py", "tests/test_b.py"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    python, seen = tmp_path / "bin" / "python", tmp_path / "arguments"
    python.parent.mkdir()
    python.write_text(PYTHON)
    python.chmod(0o755)
    kept = ("OMP_NUM_THREADS", "IFLOO_MNIST_ROOT", "ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR")
    environment = {name: value for name, value in os.environ.items() if name not in kept}

    def run(name: str, *flags: str, **variables: str) -> Ran:
        seen.write_text("")
        env = environment | {"PATH": f"{python.parent}:{os.environ['PATH']}", "ARGUMENTS": str(seen)} | variables
        command = ["bash", str(tmp_path / "scripts" / name), *flags]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=LONG, check=False)
        calls = [call.splitlines() for call in seen.read_text().split("threads=")[1:]]
        return Ran(done.returncode, done.stdout, done.stderr, calls)

    return run


GIVEN = {
    "": [*TWO, "-m", "not slow"],
    "--all": TWO,
    "-q --all -x": [*TWO, "-q", "-x"],
    "-m full": [*TWO, "-m", "(full) and not slow"],
    "-mfull": [*TWO, "-m", "(full) and not slow"],
    "-m=full": [*TWO, "-m", "(full) and not slow"],
    "-m slow": [*TWO, "-m", "slow"],
    "--all -m full": [*TWO, "-m", "full"],
    "--all -m slow": [*TWO, "-m", "slow"],
    "-n 0": ["-n", "0", "-m", "not slow"],
    "-s": ["-s", "-m", "not slow"],
    "tests/test_b.py": ["tests/test_b.py", "-m", "not slow"],
    "tests/test_b.py tests/solvers/test_a.py": [*TWO, "tests/test_b.py", "tests/solvers/test_a.py", "-m", "not slow"],
    "tests/solvers": [*TWO, "tests/solvers", "-m", "not slow"],
    "tests/test_b.py::test_c": ["tests/test_b.py::test_c"],
}


@pytest.mark.parametrize("flags", GIVEN)
def test_what_pytest_is_given(script, flags):
    ran = script("run_tests.sh", *flags.split())
    assert (ran.code, ran.err) == (0, "")
    assert ran.arguments == GIVEN[flags]


def test_an_expression_of_marks_stays_one_word(script):
    ran = script("run_tests.sh", "-m", "full or not full")
    assert ran.arguments == [*TWO, "-m", "(full or not full) and not slow"]


def test_marks_without_an_expression(script):
    ran = script("run_tests.sh", "-m")
    assert (ran.code, ran.calls) == (2, [])
    assert ran.err == "run_tests.sh: -m needs an expression of marks, such as -m slow\n"


def test_each_of_two_has_one_thread_unless_asked_for_more(script):
    assert [call[0] for call in script("run_tests.sh").calls] == ["1"]
    assert [call[0] for call in script("run_tests.sh", OMP_NUM_THREADS="2").calls] == ["2"]
    assert [call[0] for call in script("run_tests.sh", "-n", "0").calls] == [""]


VARIANTS = [
    "ATEN_CPU_CAPABILITY=default",
    "ATEN_CPU_CAPABILITY=avx2",
    "MKL_ENABLE_INSTRUCTIONS=AVX2",
    "MKL_CBWR=COMPATIBLE",
    "OMP_NUM_THREADS=1",
    "OMP_NUM_THREADS=2",
]


def lines(ran: Ran) -> list[tuple[str, str]]:
    """Result and variant of each line."""
    found = [re.fullmatch(r"(ok|FAILED) +\d+ min \d\d s  (.*)", line) for line in ran.out.splitlines()]
    return [(match[1], match[2]) for match in found if match]


def test_all_variants_run_and_each_has_a_line(script):
    ran = script("check_all.sh", "tests/solvers")
    assert (ran.code, ran.err) == (0, "")
    assert lines(ran) == [("ok", variant) for variant in VARIANTS]
    assert [call[0] for call in ran.calls] == ["1", "1", "1", "1", "1", "2"]
    assert all(call[1:] == ["-m", "pytest", *TWO, "tests/solvers", "-m", "not full"] for call in ran.calls)
    assert ran.out.splitlines()[-1].endswith("-m full: IFLOO_MNIST_ROOT names no folder of the MNIST files")


def test_a_variant_that_fails_is_shown_and_fails_the_whole(script):
    ran = script("check_all.sh", FAILS="avx2")
    assert ran.code == 1
    assert lines(ran) == [("FAILED" if "avx2" in variant else "ok", variant) for variant in VARIANTS]
    log = re.search(r"^    a line of pytest\n    The whole output: (\S+)$", ran.out, re.MULTILINE)
    assert log, ran.out
    assert Path(log[1]).read_text() == "a line of pytest\n"


def test_the_full_files_are_tested_where_they_are(script):
    ran = script("check_all.sh", IFLOO_MNIST_ROOT="somewhere")
    assert lines(ran)[-1] == ("ok", "as it is")
    assert ran.calls[-1][1:] == ["-m", "pytest", *TWO, "-m", "full"]
