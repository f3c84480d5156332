"""The statistics of a comparison: calculated once, with one label in every output, whatever the order of refits."""

import html
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import ifloo.verdict
from ifloo.cli import tables
from ifloo.report import Reporter
from ifloo.store import CORRECTED, Layout, LossFile, LossRow, StoredRemovals, removals, settings_stamp
from ifloo.verdict import compare, reason_for_none
from tests.report.boards import OTHER, Board, Data, add_test
from tests.report.html_pages import Reader
from tests.verdict.results import ACTUAL, CONTROLS, REMOVED, SCORES, N, Results, T

NOISY = SCORES + 5e-4 * np.random.default_rng(2).normal(size=N)
EQUAL = "all actual changes are 0.001 nats"


def add_corrected(results, t=T):
    """Removals predicted with leverage for all that were refitted."""
    scores = SCORES[::2].astype(np.float64) * (1 if t == T else 1000)
    path = results.layout.removals(t)
    path.parent.mkdir(parents=True, exist_ok=True)
    stamp = settings_stamp(results.influence)
    effects = -scores * 1.01 + 1e-6 * np.random.default_rng(t).normal(size=len(REMOVED))
    removals.save(path, StoredRemovals(t, REMOVED, effects, np.zeros(len(REMOVED)), 0.0, 0.0, "", stamp))


def add_steps(results):
    """Refits of twelve samples at small weight steps."""
    noise = np.random.default_rng(5).normal(size=(2, 12)) * 1e-6
    for weight, off in zip((0.9, 1.1), noise, strict=True):
        file = LossFile(results.layout.weight_losses(weight, T))
        for i, slope, more in zip(REMOVED[:12].tolist(), SCORES[:24:2].tolist(), off.tolist(), strict=True):
            file.add(LossRow(i, results.loss + slope * (weight - 1) + more))


def add_other_nulls(results):
    """More null refits: displaced ones and those from other seeds."""
    for draw, loss in enumerate((0.70003, 0.70001, 0.69998), start=2):
        LossFile(results.layout.null_losses(T), "draw").add(LossRow(-1, loss, extra={"draw": draw}))
        LossFile(results.layout.seed_losses(T), "draw").add(LossRow(-1, 3 * loss, extra={"draw": draw}))


def set_changes(results, changes):
    """Replaces the refits of a test by others, with these changes by id."""
    path = results.layout.loo_losses(T)
    path.unlink()
    for i, change in {-1: 0.0, **changes}.items():
        LossFile(path).add(LossRow(i, results.loss + change, grad_norm=1e-11, delta_error=1e-9))


def run(results, folder, tests=(T,)):
    """What `ifloo report` does."""
    made = Reporter(results.layout, Data(), folder / "logs").run(list(tests), 6)
    tables.verdict(made)
    return made


@pytest.fixture
def results(tmp_path):
    return Results(Layout(tmp_path / "out")).write()


# Once.


def test_a_report_calculates_each_statistic_once(results, tmp_path, monkeypatch):
    add_test(results)
    for t in (T, OTHER):
        results.add_method("noisy", NOISY, test_id=t)
        (path,) = results.layout.root.glob(f"methods/noisy/influences_test_{T}.npz")
        path.replace(results.layout.method_scores("noisy", t))
        results.add_method("noisy", NOISY)
        add_corrected(results, t)
    add_steps(results)
    calls, checked = Counter(), ifloo.agreement._checked

    def counted(predicted, actual):
        calls[np.asarray(predicted).tobytes(), np.asarray(actual).tobytes()] += 1
        return checked(predicted, actual)

    monkeypatch.setattr(ifloo.agreement, "_checked", counted)
    run(results, tmp_path, (T, OTHER))
    by_test = 2 * 3 * (1 + 2)  # two tests, three selections, the scores and two further methods
    pooled = 3 + 2
    steps = 2  # against the scores, and up against down
    assert calls.total() == by_test + pooled + steps
    assert set(calls.values()) == {1}


# In any order.


def test_the_order_in_which_refits_finished_changes_nothing(results, tmp_path):
    add_test(results)
    results.add_method("noisy", NOISY)
    add_corrected(results)
    add_steps(results)
    add_other_nulls(results)
    said = []
    for turn in (1, -1):
        run(results, tmp_path, (T, OTHER))
        said.append((results.layout.verdict.read_bytes(), results.layout.report.read_bytes()))
        for path in results.layout.existing_losses():
            path.write_text("".join(path.read_text().splitlines(keepends=True)[::-turn]))
    assert said[0] == said[1]
    assert set(json.loads(said[0][0])["tests"][str(T)]) >= {"pearson_ci", "small_steps", "seed_spread", "methods"}


def test_refits_are_flagged_by_their_own_error(results):
    """The errors stand in the order of the file, the changes in the order of the ids."""
    path = results.layout.loo_losses(T)
    path.unlink()
    rows = [(-1, 0.0, 0.0)] + [
        (i, change, abs(change) * (0.5 if change > 0 else 0.01))
        for i, change in zip(REMOVED[::-1].tolist(), ACTUAL[::-1].tolist(), strict=True)
    ]
    for i, change, error in rows:
        LossFile(path).add(LossRow(i, results.loss + change, delta_error=error))
    assert compare(results.layout, T, []).flagged == int((ACTUAL > 0).sum())


# Under one label.


def test_a_row_has_one_label_in_every_output(results, tmp_path, capsys):
    add_test(results)
    results.add_method("noisy", NOISY)
    for t in (T, OTHER):
        add_corrected(results, t)
    made = run(results, tmp_path, (T, OTHER))
    label = "leverage-corrected"
    assert made[T].statistics.row("top_k", CORRECTED).label == f"{label}, top-k"
    terminal = [line.strip() for line in capsys.readouterr().out.splitlines()]
    text = html.unescape(Board.of(tmp_path / "logs").text("1 verdict"))
    page = Reader(results.layout.report.read_text(encoding="utf-8"))
    for selection in ("all", "top-k", "random"):
        assert sum(line.startswith(f"{selection} ") for line in terminal) >= 3
        assert sum(line.startswith(f"{label}, {selection} ") for line in terminal) == (3 if selection == "all" else 2)
        assert len(re.findall(rf"^\| \w+ \| {selection} \|", text, re.M)) == 3
    assert len(re.findall(rf"^\| \w+ \| {label}, all \|", text, re.M)) == 3
    assert page.data["methods"] == ["influence scores", label, "noisy"]
    assert {"all", "top-k", "random", label, "noisy"} <= {words.strip() for words in page.texts}
    shown = (*terminal, text, page.text)
    assert not any(old in one for old in ("leverage_corrected", "counted in", "corrected all") for one in shown)


# Where there are none.


def equal_controls(results):
    changes = dict(zip(REMOVED.tolist(), ACTUAL.tolist(), strict=True))
    set_changes(results, {**changes, **dict.fromkeys(CONTROLS, 1e-3)})


def test_controls_that_change_the_loss_alike_have_a_dash_and_a_reason(results, tmp_path, capsys):
    equal_controls(results)
    made = run(results, tmp_path)
    row = made[T].statistics.row("random")
    assert (row.n, row.agreement, row.reason) == (8, None, EQUAL)
    verdict = json.loads(results.layout.verdict.read_text())["tests"][str(T)]
    assert verdict["random"] is None
    assert verdict["top_k"]["pearson"] > 0.5
    assert f"\n  random             -  {EQUAL}\n" in capsys.readouterr().out
    assert f"| {T} | random | none: {EQUAL} |" in Board.of(tmp_path / "logs").text("1 verdict")
    text = Reader(results.layout.report.read_text(encoding="utf-8")).text
    assert f"random {EQUAL}" in text
    assert f"Of the 8 samples drawn at random no statistic can be given: {EQUAL}." in text


def test_a_test_whose_loss_no_refit_changes_does_not_cost_the_others(results, tmp_path, capsys):
    add_test(results)
    results.add_method("noisy", NOISY)
    set_changes(results, dict.fromkeys(REMOVED.tolist(), 1e-3))
    run(results, tmp_path, (T, OTHER))
    verdict = json.loads(results.layout.verdict.read_text())["tests"]
    assert "pearson" not in verdict[str(T)]
    assert verdict[str(T)]["n_refits"] == len(REMOVED)
    assert verdict[str(OTHER)]["pearson_ci"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[3:6] == [f"  {name:<16}   -  {EQUAL}" for name in ("all", "top-k", "random")]
    assert lines[7] == f"  {'noisy':<16}   -  {EQUAL}"
    text = Reader(results.layout.report.read_text(encoding="utf-8")).text
    assert "label class 0 20" in text.replace("test 3, ", "")
    assert "cannot be judged" in text
    assert "not verified" not in text
    for name in ("influence_vs_loo", "methods_comparison"):
        assert results.layout.figure(name, T).exists()


def test_the_reasons():
    some = np.arange(5.0)
    assert reason_for_none(some, some) == ""
    assert reason_for_none(some[:0], some[:0]) == "nothing to compare"
    assert reason_for_none(some[:2], some[:2]) == "too few to compare: 2, and a statistic needs 3"
    assert reason_for_none(np.full(5, 0.25), some) == "predicts the same change for all of them"
    assert reason_for_none(some, np.full(5, -0.25)) == "all actual changes are -0.25 nats"


# Of one base model.


def test_the_statistics_need_no_drawing():
    """What is published as a number imports no Trainer, no picture, no page and no floor above."""
    room = Path(ifloo.verdict.__file__).parent
    files = {f"ifloo.verdict.{path.stem}" for path in room.glob("*.py")} - {"ifloo.verdict.__init__"}
    code = "import sys, importlib\nfor name in sys.argv[1:]:\n    importlib.import_module(name)\nprint(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code, *files], capture_output=True, text=True, check=True)
    loaded = set(shown.stdout.split())
    assert len(files) > 5
    assert files <= loaded
    heavy = ("lightning", "pytorch_lightning", "matplotlib", "tensorboard", "jinja2", "PIL")
    above = ("ifloo.report", "ifloo.stages", "ifloo.refit", "ifloo.models", "ifloo.data", "ifloo.cli", "ifloo.doctor")
    assert not [name for name in (*heavy, *above) if name in loaded]
