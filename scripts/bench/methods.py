"""Table of methods: the works of each, its precision, and whether a run without `--methods` includes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SCORES, REFITS = ("T1", "T100", "T10000"), ("R500",)
WORKS = ("GEMM", *SCORES, *REFITS)


@dataclass(frozen=True)
class Method:
    """One method of the comparison.

    Attributes:
        name: Name of the method.
        call: `module:function` to call.
        works: Works that it can do.
        dtype: Precision of data and model.
        options: Options of the function.
        units: Number of units to time by work, the rest being extrapolated; other works are done in full.
        peer: Whether it is of another library, which may not be installed.
        usual: Whether a run without `--methods` includes it.
        note: Note in its rows.
    """

    name: str
    call: str
    works: tuple[str, ...]
    dtype: str = "float64"
    options: Mapping[str, Any] = field(default_factory=dict)
    units: Mapping[str, int] = field(default_factory=dict)
    peer: bool = False
    usual: bool = True
    note: str | None = None


FEW = {"T100": 3, "T10000": 3}
COLD, WARM = {"iterations": None}, {"iterations": None, "warm": True}
FEW_TESTS = ("T1", "T100")
BLOCK = {"solve_simultaneously": True, "rtol": 1e-6, "atol": 0.0, "maxiter": 200}
METHODS: tuple[Method, ...] = (
    Method("ifloo float32", "bench.ours:listed", ("T1",), "float32"),
    Method("ifloo", "bench.ours:listed", ("T1", "T100")),
    Method("ifloo", "bench.ours:all_tests", ("T10000",), options={"matrix": True}),
    Method("ifloo", "bench.ours:refits", REFITS),
    Method("LiSSA loop", "bench.loops:lissa", SCORES, "float32", units=FEW, note="depth 1,000 x 10, scale 75"),
    Method("L-BFGS 20", "bench.loops:lbfgs", REFITS, "float32", {"iterations": 20}, {"R500": 5}),
    Method("L-BFGS 100", "bench.loops:lbfgs", REFITS, "float32", {"iterations": 100}, {"R500": 5}),
    Method("L-BFGS floor", "bench.loops:lbfgs", REFITS, "float64", COLD, {"R500": 5}, note="from zero"),
    Method("L-BFGS floor warm", "bench.loops:lbfgs", REFITS, "float64", WARM, {"R500": 5}, note="from the base"),
    *(
        Method(name, f"bench.peers.with_{call}", works, "float32", options, peer=True, note=note)
        for name, call, works, options, note in (
            ("pyDVL CG", "pydvl:conjugate_gradients", ("T1",), {}, "its default tolerance, full batch"),
            (
                "pyDVL block CG",
                "pydvl:conjugate_gradients",
                FEW_TESTS,
                BLOCK,
                "rtol 1e-6, full batch",
            ),
            ("pyDVL Nystroem", "pydvl:nystroem", ("T1",), {}, "rank 500"),
            ("pyDVL EK-FAC", "pydvl:ekfac", ("T1",), {}, None),
            ("dattri CG", "dattri:conjugate_gradients", FEW_TESTS, {}, "100 steps, full batch"),
            ("captum Arnoldi", "captum:arnoldi", ("T1",), {}, "its default rank, 50"),
            ("kronfluence EK-FAC", "kronfluence:ekfac", FEW_TESTS, {}, None),
        )
    ),
)


def chosen(names: list[str] | None, work: str) -> list[Method]:
    """Returns the methods of a work: those named, or else the usual ones."""
    return [m for m in METHODS if work in m.works and (m.name in names if names else m.usual)]
