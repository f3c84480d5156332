"""One measurement: what is asked of a worker process, and the row it gives back."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ENTRY = Path(__file__).resolve().parent.parent / "benchmark.py"
Row = dict[str, Any]
KEYS = (
    *("work", "method", "wall_s", "cpu_s", "peak_rss_gb", "pearson", "slope", "max_rel_err", "residual"),
    *("gemm_gflops", "scaled_from", "n", "p", "dtype", "tests", "note", "error", "skipped"),
)
"""Of every row; null where it does not apply."""


class NotInstalledError(Exception):
    """The library a method calls is not there."""


@dataclass(frozen=True)
class Task:
    """One (work, method), for a process of its own.

    Attributes:
        work: T1, T100, T10000, R500, GEMM, or what they all need (fit, exact).
        method: its name in the table of methods.
        call: `module:function`, given (Problem, Task).
        folder: of the run's shared files (base model, exact scores).
        root: of the IDX files; None: the digits that come with ifloo.
        n: training images.
        tests: test images in use at most; None: all there are.
        refits: refits without the samples of largest |score| on test 8.
        dtype: precision of data and model.
        options: of the method.
        accelerator: as Lightning names it.
        devices: how many of them.
    """

    work: str
    method: str
    call: str
    folder: str
    root: str | None = None
    n: int = 55_000
    tests: int | None = None
    refits: int = 500
    dtype: str = "float64"
    options: Mapping[str, Any] = field(default_factory=dict)
    accelerator: str = "cpu"
    devices: int = 1

    def function(self) -> Any:
        """What is called; imports the library it needs.

        Raises:
            NotInstalledError: that library is not installed.
            ModuleNotFoundError: a module of this project is missing, which is a fault.
        """
        module, name = self.call.split(":")
        try:
            return getattr(importlib.import_module(module), name)
        except ModuleNotFoundError as error:
            if str(error.name).partition(".")[0] in ("bench", "ifloo"):
                raise
            raise NotInstalledError(f"{error.name} is not installed in {sys.executable}") from error

    def row(self, **known: Any) -> Row:
        """A row about this task; every key is there.

        Raises:
            ValueError: a value under a name that a row does not have would be lost unseen.
        """
        start = {"work": self.work, "method": self.method, "n": self.n, "dtype": self.dtype}
        return {**dict.fromkeys(KEYS), **start, **known}

    @property
    def device(self) -> str:
        return "cuda" if self.accelerator in ("gpu", "cuda") else "cpu"


def launch(task: Task, python: str = sys.executable, timeout: float | None = None) -> Row:
    """Runs a task in a process of its own and gives its row, also where the process failed."""
    folder = Path(task.folder) / "tasks" / f"{task.work}_{task.method}".replace(" ", "_").replace("/", "_")
    folder.mkdir(parents=True, exist_ok=True)
    asked, answer, said = folder / "task.json", folder / "row.json", folder / "log.txt"
    asked.write_text(json.dumps(dataclasses.asdict(task)))
    answer.unlink(missing_ok=True)
    path = os.pathsep.join(filter(None, [str(ENTRY.parent.parent), os.environ.get("PYTHONPATH")]))
    command = [python, str(ENTRY), "--task", str(asked), "--row", str(answer)]
    with said.open("wb") as log:
        try:
            done = subprocess.run(
                command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "PYTHONPATH": path}, timeout=timeout
            )
        except subprocess.TimeoutExpired:
            return task.row(error=f"not finished after {timeout:.0f} s")
    if answer.is_file():
        done_row: Row = json.loads(answer.read_text())
        return done_row
    return task.row(error=_died(done.returncode, said))


def _died(code: int, said: Path) -> str:
    lines = said.read_text(errors="replace").strip().splitlines()
    cause = f"killed by signal {-code}{', out of memory?' if code == -9 else ''}" if code < 0 else f"exit code {code}"
    return f"the process ended without a result ({cause}): {lines[-1] if lines else 'it said nothing'}"
