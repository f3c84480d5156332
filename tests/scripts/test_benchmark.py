"""The benchmark on a few digits: every row with all its keys, what was scaled says so, what failed is not hidden."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.running import call
from tests.scripts.test_original_commands import script

LOOPS = ("LiSSA loop", "L-BFGS 20")
METHODS = ",".join(("ifloo", "ifloo float32", *LOOPS))
N, TESTS, REFITS = 120, 12, 6


def loaded(name: str) -> Any:
    script("benchmark")  # puts `bench` among the modules
    return script(name)


@pytest.fixture(scope="module")
def small() -> Any:
    """The benchmark with its works in this process, few steps, and one small product for GEMM."""
    main, task, methods, worker = (loaded(x) for x in ("benchmark", "bench.task", "bench.methods", "bench.worker"))
    lissa = {"depth": 20, "repeats": 2}
    light = [
        dataclasses.replace(m, options={**m.options, **lissa}) if "LiSSA" in m.name else m for m in methods.METHODS
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(methods, "METHODS", tuple(light))
        patch.setattr(main, "SHAPES", ((64, 64, 64),))
        patch.setattr(main, "launch", lambda asked, *_: worker.run(through_json(task, asked)))
        yield main


def through_json(task: Any, asked: Any) -> Any:
    return task.Task(**json.loads(json.dumps(dataclasses.asdict(asked))))


@pytest.fixture(scope="module")
def ran(small, tmp_path_factory) -> tuple[Any, Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("benchmark")
    flags = ["--n", str(N), "--tests", str(TESTS), "--refits", str(REFITS), "--methods", METHODS]
    flags += ["--scores_dir", str(folder / "kept"), "--json", str(folder / "rows.json")]
    said = call(small.main, folder, flags)
    return said, folder, json.loads((folder / "rows.json").read_text())


def of(rows: list[dict[str, Any]], work: str, method: str) -> dict[str, Any]:
    (row,) = [r for r in rows if (r["work"], r["method"]) == (work, method)]
    return row


def test_every_work_has_its_rows_and_every_row_its_keys(ran):
    said, _, rows = ran
    assert said.code == 0, said.err
    keys = loaded("bench.task").KEYS
    assert all(set(keys) <= row.keys() for row in rows)
    assert not [row for row in rows if row["error"] or row["skipped"]]
    found = {(row["work"], row["method"]) for row in rows}
    wanted = {(work, "ifloo") for work in ("T1", "T100", "T10000", "R500")}
    wanted |= {("T1", "ifloo float32"), ("GEMM", "64x64x64"), ("fit", "base model"), ("R500", "L-BFGS 20")}
    assert wanted <= found


STORED = 2.0**-24  # half a unit in the last place of a float32, relative: no stored score is further off


def certified(results: Path) -> float:
    """Largest error bound of a listed test, relative to its largest score."""
    found = []
    for path in results.glob("influences_test_*.npz"):
        with np.load(path) as one:
            found.append(float(one["error_bound"]) / float(abs(one["scores"]).max()))
    return max(found)


def terms(kept: Path) -> int:
    """Terms in the product of a gradient and a direction: live pixels times the classes but one."""
    problem, task = loaded("bench.problem"), loaded("bench.task")
    made = problem.Problem.load(task.Task("T10000", "", "", str(kept), n=N, tests=TESTS))
    return int((made.x != 0).any(0).sum()) * (len(made.weights) - 1)


def test_exact_methods_are_exact_and_the_loop_is_not(ran):
    _, folder, rows = ran
    kept = folder / "kept"
    tolerance = {work: STORED + certified(kept / "outputs" / f"{work}_ifloo") for work in ("T1", "T100")}
    # Scores of all tests are products in float32: some 4,600 additions, each rounded to STORED of a sum that is about
    # the largest score at most, in an order that the processor chooses; such errors grow as the root of their count.
    tolerance["T10000"] = STORED * (1 + terms(kept) ** 0.5)
    for work, close in tolerance.items():
        row = of(rows, work, "ifloo")
        assert row["max_rel_err"] < close < 1e-5
        assert row["pearson"] == pytest.approx(1, abs=1e-9)
        assert row["slope"] == pytest.approx(1, abs=1e-6)
    assert of(rows, "T1", "LiSSA loop")["max_rel_err"] > 0.1
    assert of(rows, "fit", "base model")["residual"] <= 1e-10


def test_refits_are_certified_and_meet_the_corrected_prediction(ran):
    row = of(ran[2], "R500", "ifloo")
    assert row["residual"] <= 1e-10
    # 120 images: what is left after the correction is third order in the sample's weight.
    assert abs(row["slope_corrected"] - 1) < abs(row["slope"] - 1)
    assert row["median_rel_err_corrected"] < row["median_rel_err"]
    assert of(ran[2], "R500", "L-BFGS 20")["residual"] > 1e-6


def test_what_was_scaled_says_from_what(ran):
    rows = ran[2]
    assert re.fullmatch(r"5 of 6 refits timed \(.* s\)", of(rows, "R500", "L-BFGS 20")["scaled_from"])
    assert re.fullmatch(r"3 of 12 queries timed \(.* s\)", of(rows, "T100", "LiSSA loop")["scaled_from"])
    assert of(rows, "T1", "LiSSA loop")["scaled_from"] is None
    assert all(row["scaled_from"] is None for row in rows if row["method"].startswith("ifloo"))


def test_the_bound_counts_products_and_bytes(ran):
    rows = ran[2]
    written, bound, ours = (of(rows, "T10000", x) for x in ("bound: bytes", "bound: products", "ifloo"))
    assert written["write_s"] > 0
    peaks = {r["dtype"]: r["gemm_gflops"] for r in rows if r["work"] == "GEMM"}
    seconds = sum(written["gemm_flops"][dtype] / (1e9 * peaks[dtype]) for dtype in peaks)
    assert bound["wall_s"] == pytest.approx(seconds)
    assert ours["ratio_to_bound"] == pytest.approx((ours["wall_s"] - written["write_s"]) / seconds)


def test_table_and_picture_stand_beside_the_rows(ran):
    said, folder, rows = ran
    assert (folder / "rows.md").read_text() == said.out
    assert said.out.count("\n| ") == 1 + len(rows)
    assert (folder / "rows.png").read_bytes().startswith(b"\x89PNG")


def test_exact_scores_are_those_of_the_general_path(ran):
    """The truth of the benchmark against the Hessian by automatic differentiation."""
    import torch

    from ifloo.attribution import InfluenceEngine
    from ifloo.curvature import Hessian
    from ifloo.objective import Objective
    from ifloo.solvers import CG

    problem, task = loaded("bench.problem"), loaded("bench.task")
    asked = task.Task("T1", "", "", str(ran[1] / "kept"), n=N, tests=TESTS)
    made = problem.Problem.load(asked)
    objective = Objective.of(made.module, made.data.train_dataloader())
    theta = objective.losses.theta()
    scores = InfluenceEngine(objective, theta, Hessian(objective, theta), CG(1e-12)).scores(made.data.test_batch([8]))
    with np.load(problem.exact_file(asked)) as file:
        truth = torch.from_numpy(file["scores"][list(file["tests"]).index(8)])
    torch.testing.assert_close(scores.value[0], truth, rtol=0, atol=1e-11 * float(truth.abs().max()))


@pytest.mark.slow
def test_a_method_that_fails_is_a_row_and_an_exit_code(small, ran, tmp_path, monkeypatch):
    def fails(problem: Any, task: Any) -> None:
        raise ArithmeticError("the recursion diverged")

    monkeypatch.setattr(loaded("bench.ours"), "listed", fails)
    flags = ["--work", "T1", "--n", str(N), "--tests", str(TESTS), "--methods", "ifloo,ifloo float32"]
    flags += ["--json", "rows.json", "--scores_dir", str(ran[1] / "kept")]
    said = call(small.main, tmp_path, flags)
    assert said.code == 1
    row = of(json.loads((tmp_path / "rows.json").read_text()), "T1", "ifloo")
    assert row["error"] == "ArithmeticError: the recursion diverged"
    assert row["wall_s"] is None
    assert "FAILED: ArithmeticError: the recursion diverged" in said.out


def test_a_library_that_is_absent_is_skipped_by_name():
    task = loaded("bench.task")
    asked = task.Task("T1", "peer", "no_such_library.module:function", "nowhere")
    with pytest.raises(task.NotInstalledError, match="no_such_library is not installed in "):
        asked.function()


def test_a_process_that_dies_is_a_row(tmp_path):
    task = loaded("bench.task")
    row = task.launch(task.Task("T1", "dies", "os:abort", str(tmp_path)), python="/bin/false")
    assert row["error"] == "the process ended without a result (exit code 1): no output"


@pytest.mark.slow
def test_a_process_of_its_own_gives_a_row(tmp_path):
    task = loaded("bench.task")
    row = task.launch(task.Task("GEMM", "tiny", "bench.gemm:peak", str(tmp_path), options={"shape": (64, 64, 64)}))
    assert row["error"] is None
    assert row["gemm_gflops"] > 0
    assert row["peak_rss_gb"] > 0.05


def test_growth_is_the_exponent_of_a_power_law():
    task, growth = loaded("bench.task"), loaded("bench.growth")
    made = [
        task.Task("T1", "ifloo", "", "", n=n).row(wall_s=3e-6 * n**1.25, peak_rss_gb=1.0) for n in (5000, 15000, 55000)
    ]
    (row,) = growth.exponents([*made, task.Task("T1", "once", "", "", n=5000).row(wall_s=1.0)])
    assert row["work"] == "growth of T1"
    assert row["exponent"] == pytest.approx(1.25)
    assert row["last_exponent"] == pytest.approx(1.25)
    assert row["rss_exponent"] == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--work", "T2"], "no work ['T2']; choose from GEMM, T1, T100, T10000, R500"),
        (["--tests", "8"], "8 leaves out test image 8, the one of T1 and R500; give 9 or more"),
    ],
)
def test_flags_that_make_no_sense_are_refused(small, tmp_path, flags: list[str], message: str):
    said = call(small.main, tmp_path, flags)
    assert said.code == 2
    assert message in said.err
