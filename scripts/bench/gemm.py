"""Speed of the machine: matrix products and writing of bytes, and the lower bound of T10000's time that follows."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from bench.problem import data_of
from bench.task import Row, Task

REPEATS = 5
ROWS_AT_ONCE = 256  # rows of scores written per fsync
FEATURES, CLASSES = 784, 10


def peak(task: Task) -> Row:
    """Times products of one shape, `[a, b] x [b, c]`, and returns the best of several."""
    a, b, c = task.options["shape"]
    dtype = getattr(torch, task.dtype)
    left = torch.randn(a, b, dtype=dtype, device=task.device)
    right = torch.randn(b, c, dtype=dtype, device=task.device)
    out = torch.empty(a, c, dtype=dtype, device=task.device)
    seconds = _best(lambda: torch.mm(left, right, out=out), task.device)
    return {"wall_s": seconds, "gemm_gflops": 2e-9 * a * b * c / seconds, "note": f"best of {REPEATS}"}


def _best(work: Callable[[], object], device: str) -> float:
    def once() -> float:
        begun = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begun

    return min(once() for _ in range(REPEATS))


def write(task: Task) -> Row:
    """Times the writing of float32 scores of all tests, in blocks of rows with an fsync each; deletes the file."""
    data = data_of(task)
    m, n = len(data.test_set), len(data.train_set)
    path = Path(task.folder) / "written.bin"
    block = np.random.default_rng(0).standard_normal((ROWS_AT_ONCE, n), dtype=np.float32)
    begun = time.perf_counter()
    with path.open("wb") as file:
        for start in range(0, m, ROWS_AT_ONCE):
            file.write(block[: m - start].data)
            file.flush()
            os.fsync(file.fileno())
    seconds = time.perf_counter() - begun
    path.unlink()
    x = data.train_set.x
    live = int((x != 0).any(0).sum())
    return {
        "write_s": seconds,
        "gemm_flops": flops(n, m, x.shape[1], live),
        "tests": m,
        "note": f"{4e-9 * m * n:.3g} GB, {4e-6 * m * n / seconds:.0f} MB/s; {live} of {x.shape[1]} inputs live",
    }


def flops(n: int, m: int, d: int, live: int) -> dict[str, float]:
    """Counts the floating-point operations of T10000 by precision: float64 factor and solves, float32 scores.

    The count consists of Gram matrices of the C(C−1)/2 pairs of classes by symmetric products over all d inputs;
    Cholesky and solves of p' = (C−1) · live parameters, since the classes' gradients add up to zero and dead inputs
    have none; and scores as one product `[m, p'] x [p', n]`.
    """
    p = (CLASSES - 1) * live
    factor = n * d**2 * CLASSES * (CLASSES - 1) / 2 + p**3 / 3
    return {"float64": factor + 2 * p**2 * m, "float32": 2 * n * p * m}


def bound(rows: list[Row]) -> list[Row]:
    """Adds to each T10000 row its ratio to the bound and returns the bound as a row; [] if a part is missing."""
    peaks = {
        dtype: max(
            (r["gemm_gflops"] for r in rows if r["work"] == "GEMM" and r["dtype"] == dtype and r["gemm_gflops"]),
            default=0,
        )
        for dtype in ("float32", "float64")
    }
    written = next((r for r in rows if r["work"] == "T10000" and r.get("write_s") is not None), None)
    if written is None or not all(peaks.values()):
        return []
    work = written["gemm_flops"]
    seconds = sum(work[dtype] / (1e9 * peaks[dtype]) for dtype in peaks)
    for row in rows:
        if row["work"] == "T10000" and row.get("write_s") is None and row["wall_s"] is not None:
            row["gemm_gflops"] = 1e-9 * sum(work.values()) / row["wall_s"]
            row["ratio_to_bound"] = (row["wall_s"] - written["write_s"]) / seconds
    counted = ", ".join(f"{1e-12 * work[dtype]:.3g} TFLOP {dtype} at {peaks[dtype]:.0f} GFLOP/s" for dtype in peaks)
    row = {**dict.fromkeys(written), "work": "T10000", "method": "bound: products", "n": written["n"]}
    return [row | {"wall_s": seconds, "tests": written["tests"], "note": f"computed from the rows of GEMM: {counted}"}]
