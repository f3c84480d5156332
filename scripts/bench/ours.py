"""ifloo as used from Python: `InfluenceStage` and `LeaveOneOut`, including files and certificates."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np

from bench.clock import Clock, Spent
from bench.exact import exact_file
from bench.problem import QUERY, Outcome, Part, Problem, Refits
from bench.task import Task
from ifloo.refit import (
    LeaveOneOut,
    NewtonFinish,
    RefitSettings,
    Refitter,
    TrainerSettings,
    TrainingLoader,
    weights_sha256,
)
from ifloo.stages import AttributionSettings, InfluenceStage, InfluenceWriter
from ifloo.store import JSON, NULL_ID, Layout, LossFile, jsonl


def listed(problem: Problem, task: Task) -> Outcome:
    """Runs T1 and T100: one file of scores per test."""
    tests = problem.tests(task.work)
    stored = _run(problem, task, test_ids=tests).score_tests()
    assert [one.test_id for one in stored] == tests
    return Outcome(
        np.stack([one.scores for one in stored]),
        tests,
        residual=max(_undamped(one.residual, one.undamped_residual) for one in stored),
    )


def all_tests(problem: Problem, task: Task) -> Outcome:
    """Runs T10000: the scores of every test, written to disk.

    Raises:
        AssertionError: If some scores existed already, so that the time is not that of the whole work.
    """
    run = _run(problem, task, test_ids="all")
    made = run.all_tests()
    index = {row["test_id"]: row for row in jsonl.read(run.layout.index)}
    tests = problem.tests(task.work)
    if made != len(tests):
        raise AssertionError(f"{made} of {len(tests)} tests were scored: is {run.layout.root} a folder used before?")
    return Outcome(
        _Written(run.layout, [index[t] for t in tests]),
        tests,
        residual=max(_undamped(row["residual"], row.get("undamped_residual")) for row in index.values()),
    )


class _Written:
    """Rows of scores on disk, read one at a time: in memory they would dominate the measured peak."""

    def __init__(self, layout: Layout, index: list[dict[str, Any]]) -> None:
        self.folder, self.index = layout.all_tests, index

    def __getitem__(self, k: int) -> Any:
        row = self.index[k]
        content = np.load(self.folder / row["path"], mmap_mode="r")
        return np.array(content[row["row"]] if "row" in row else content)


def _undamped(residual: float | None, undamped: float | None) -> float:
    assert residual is not None  # every score of these runs comes from a solve
    return residual if undamped is None else undamped


def _run(problem: Problem, task: Task, **settings: Any) -> InfluenceStage:
    origin: dict[str, JSON] = {"weights": weights_sha256(problem.module), "data": problem.data.fingerprint()}
    chosen = AttributionSettings(**{"dtype": task.dtype, **task.options, **settings})
    return InfluenceStage(problem.module, problem.data, chosen, _layout(task), origin, _trainer(task), overwrite=True)


def _layout(task: Task) -> Layout:
    return Layout(Path(task.folder) / "outputs" / f"{task.work}_{task.method}".replace(" ", "_"))


def _trainer(task: Task) -> Any:
    def make(writer: InfluenceWriter, bar: bool) -> L.Trainer:
        return L.Trainer(
            accelerator=task.accelerator,
            devices=task.devices,
            strategy="ddp" if task.devices > 1 else "auto",
            callbacks=[writer],
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            inference_mode=False,
        )

    return make


def refits(problem: Problem, task: Task) -> Outcome:
    """Runs R500: warm refits without the samples of largest |score|, to ‖∇J‖ <= 1e-10; only `units` of them if set."""
    with np.load(exact_file(task)) as file:
        ids = [int(i) for i in file["removed"]]
    count = min(task.options.get("units", len(ids)), len(ids))
    losses = LossFile(_layout(task).loo_losses(QUERY))
    _fresh(losses)
    clock = Clock()
    _leave_one_out(problem, task, losses).run(ids[:count], [])
    spent = clock.read()
    rows = losses.rows()
    null = rows.pop(NULL_ID)
    assert null.grad_norm is not None
    norms = [null.grad_norm, *(float(row.grad_norm or 0) for row in rows.values())]
    change = np.array([rows[i].loss - null.loss for i in ids[:count]])
    part = None
    if count < len(ids):
        wall = sum(float(row.seconds or 0) for row in rows.values())  # time of the refits without their shared work
        part = Part(Spent(wall, spent.cpu * wall / spent.wall), count, len(ids), "refits")
    return Outcome(refits=Refits(np.array(ids[:count]), change, np.array(norms)), part=part)


def _fresh(losses: LossFile) -> None:
    losses.path.parent.mkdir(parents=True, exist_ok=True)
    losses.path.unlink(missing_ok=True)


def _leave_one_out(problem: Problem, task: Task, losses: LossFile) -> LeaveOneOut:
    base = problem.module
    recipe = TrainerSettings(**problem.base.record["recipe"], accelerator=task.accelerator)
    refitter = Refitter(
        start=functools.partial(copy.deepcopy, base),
        loader=TrainingLoader(problem.data),
        trainer_settings=recipe,
        finish=NewtonFinish(tolerance=1e-10, inner_dtype="float32"),
        seed=problem.base.record["seed"],
    )
    return LeaveOneOut(
        base=base,
        refitter=refitter,
        queries=problem.data.test_batch([QUERY]),
        files=[losses],
        null_files=[LossFile(_layout(task).null_losses(QUERY), "draw")],
        n=problem.n,
        settings=RefitSettings(removal="drop", random=0, null_refits=0, replicas=task.options.get("replicas")),
    )
