"""Worker: loads, times and compares one task in this process and returns its row."""

from __future__ import annotations

import os
import platform
import traceback
from collections.abc import Callable
from typing import Any

import torch

from bench import base, exact
from bench.clock import Clock, Spent, peak_gib
from bench.problem import Part, Problem
from bench.task import NotInstalledError, Row, Task


def run(task: Task) -> Row:
    """Runs a task and returns its row; an exception becomes the row's `error`."""
    try:
        return {**_measured(task), "machine": machine()}
    except NotInstalledError as absent:
        return task.row(skipped=str(absent))
    except Exception as error:  # a peer may raise any exception; the other methods must still run
        traceback.print_exc()
        lines = str(error).strip().splitlines() or ["no message"]
        return task.row(error=f"{type(error).__name__}: {lines[0]}")


def _measured(task: Task) -> Row:
    if task.work == "fit":
        found, spent, peak = _timed(lambda: base.fit(task))
        return task.row(**_times(spent, peak), **found) if "note" not in found else task.row(**found)
    call = task.function()
    if task.call.startswith("bench.gemm:"):  # the machine itself: no model
        found, spent, peak = _timed(lambda: call(task))
        return task.row(**_times(spent, peak) | found)
    problem = Problem.load(task)
    outcome, spent, peak = _timed(lambda: call(problem, task))
    known: Row = {"p": problem.p, **_times(_whole(spent, outcome.part), peak), **outcome.extra}
    if task.device == "cuda":
        known["peak_device_gb"] = torch.cuda.max_memory_allocated() / 2**30
    if task.work == "exact":
        return task.row(**known, residual=outcome.residual)
    residual = outcome.residual
    if outcome.directions is not None:
        residual = exact.true_residual(problem, outcome.tests, outcome.directions)
    known |= {"residual": residual, "scaled_from": _scaling_note(outcome.part), "tests": len(problem.tests(task.work))}
    return task.row(**known | exact.compared(task, outcome))


def _timed(work: Callable[[], Any]) -> tuple[Any, Spent, float]:
    """Returns result, time, and peak memory so far; the comparison runs later and is not included."""
    clock = Clock()
    found = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return found, clock.read(), peak_gib()


def _times(spent: Spent, peak: float) -> Row:
    return {"wall_s": spent.wall, "cpu_s": spent.cpu, "peak_rss_gb": peak}


def _whole(spent: Spent, part: Part | None) -> Spent:
    return spent if part is None else spent.scaled(part.spent, part.done, part.of)


def _scaling_note(part: Part | None) -> str | None:
    if part is None or part.done == part.of:
        return None
    return f"{part.done} of {part.of} {part.unit} timed ({part.spent.wall:.3g} s)"


def machine() -> str:
    """Describes the machine on which a row is measured."""
    name = torch.cuda.get_device_name() + ", " if torch.cuda.is_available() else ""
    model = _cpu_name() or platform.processor() or platform.machine()
    return f"{name}{model}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}"


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next((line.split(":")[1].strip() for line in file if line.startswith("model name")), "")
    except OSError:
        return ""
