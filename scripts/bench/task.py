"""One measurement: the task given to a worker process, and the row it returns."""

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
"""Keys of every row; null if a key does not apply."""


class NotInstalledError(Exception):
    """The library that a method needs is not installed."""


@dataclass(frozen=True)
class Task:
    """One (work, method), to be run in a separate process.

    Attributes:
        work: T1, T100, T10000, R500, GEMM, or the work that all others need (fit, exact).
        method: Name in the table of methods.
        call: `module:function`, called with (Problem, Task).
        folder: Folder of the run's shared files (base model, exact scores).
        root: Folder of the IDX files; None for the digits that come with ifloo.
        n: Number of training images.
        tests: Largest number of test images; None for all.
        refits: Number of refits without the samples of largest |score| on test 8.
        dtype: Precision of data and model.
        options: Options of the method.
        accelerator: Lightning's name of the accelerator.
        devices: Number of devices.
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
        """Imports the function to call, with the library it needs.

        Raises:
            NotInstalledError: If that library is not installed.
            ModuleNotFoundError: If a module of this project is missing, which is a bug.
        """
        module, name = self.call.split(":")
        try:
            return getattr(importlib.import_module(module), name)
        except ModuleNotFoundError as error:
            if str(error.name).partition(".")[0] in ("bench", "ifloo"):
                raise
            raise NotInstalledError(f"{error.name} is not installed in {sys.executable}") from error

    def row(self, **known: Any) -> Row:
        """Returns a row of this task with all keys of `KEYS`; keys that are not given are None."""
        start = {"work": self.work, "method": self.method, "n": self.n, "dtype": self.dtype}
        return {**dict.fromkeys(KEYS), **start, **known}

    @property
    def device(self) -> str:
        return "cuda" if self.accelerator in ("gpu", "cuda") else "cpu"


def launch(task: Task, python: str = sys.executable, timeout: float | None = None) -> Row:
    """Runs a task in a separate process and returns its row, also if the process failed."""
    folder = Path(task.folder) / "tasks" / f"{task.work}_{task.method}".replace(" ", "_").replace("/", "_")
    folder.mkdir(parents=True, exist_ok=True)
    task_file, row_file, log_file = folder / "task.json", folder / "row.json", folder / "log.txt"
    task_file.write_text(json.dumps(dataclasses.asdict(task)))
    row_file.unlink(missing_ok=True)
    path = os.pathsep.join(filter(None, [str(ENTRY.parent.parent), os.environ.get("PYTHONPATH")]))
    command = [python, str(ENTRY), "--task", str(task_file), "--row", str(row_file)]
    with log_file.open("wb") as log:
        try:
            done = subprocess.run(
                command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "PYTHONPATH": path}, timeout=timeout
            )
        except subprocess.TimeoutExpired:
            return task.row(error=f"not finished after {timeout:.0f} s")
    if row_file.is_file():
        done_row: Row = json.loads(row_file.read_text())
        return done_row
    return task.row(error=_failure(done.returncode, log_file))


def _failure(code: int, log_file: Path) -> str:
    lines = log_file.read_text(errors="replace").strip().splitlines()
    cause = f"killed by signal {-code}{', out of memory?' if code == -9 else ''}" if code < 0 else f"exit code {code}"
    return f"the process ended without a result ({cause}): {lines[-1] if lines else 'no output'}"
