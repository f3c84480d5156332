"""All tests together: statistics over the rows of all of them."""

import json
from dataclasses import replace

import numpy as np
import pytest

from ifloo.agreement import agreement
from ifloo.cli import tables
from ifloo.report import Reporter
from ifloo.store import Layout
from ifloo.verdict import Verdict, compare, pooled
from tests.verdict.results import ACTUAL, REMOVED, SCORES, N, Results, T

TOP = REMOVED[:6].tolist()
NOISY = SCORES + 5e-4 * np.random.default_rng(2).normal(size=N)


@pytest.fixture
def compared(tmp_path):
    results = Results(Layout(tmp_path)).write()
    results.add_method("noisy", NOISY)
    results.add_method("of_one_test", NOISY)
    one = compare(results.layout, T, TOP)
    other_methods = {"noisy": np.where(np.arange(len(REMOVED)) < 3, np.nan, one.other_methods["noisy"])}
    other = replace(one, predicted=0.5 * one.predicted, other_methods=other_methods, top=~one.top, noise_floor=2e-4)
    return {T: one, T + 1: other}


def test_rows_of_all_tests_are_one_cloud(compared):
    one, other = compared.values()
    predicted, actual = np.concatenate([one.predicted, other.predicted]), np.concatenate([one.actual, other.actual])
    found = pooled(compared)
    assert found.tests == (T, T + 1)
    top, control = np.concatenate([one.top, other.top]), np.concatenate([one.control, other.control])
    assert {row.selection: row.agreement for row in found.statistics.scores} == {
        "all": agreement(predicted, actual, noise_floor=2e-4),
        "top_k": agreement(predicted[top], actual[top], noise_floor=2e-4),
        "random": agreement(predicted[control], actual[control], noise_floor=2e-4),
    }
    noisy = np.concatenate([one.other_methods["noisy"], other.other_methods["noisy"][3:]])
    expected = agreement(noisy, np.concatenate([one.actual, other.actual[3:]]), noise_floor=2e-4)
    assert {row.method: row.agreement for row in found.statistics.other_methods} == {"noisy": expected}
    said = found.to_json()
    assert (said["test_ids"], said["n_refits"]) == ([T, T + 1], 2 * len(REMOVED))
    assert said["slope"] == found.statistics.row().agreement.slope
    assert said["random"]["n_refits"] == 16
    assert said["methods"]["noisy"]["pearson"] == expected.pearson


def test_one_test_is_not_pooled(compared):
    assert pooled({T: compared[T]}) is None


def test_the_table_of_all_comes_last(compared, capsys):
    tables.verdict(Verdict(compared))
    lines = capsys.readouterr().out.splitlines()
    at = lines.index("all 2 tests together")
    assert [line.split()[0] for line in lines[at + 1 :]] == ["refits", "all", "top-k", "random", "all", "noisy"]
    tables.verdict(Verdict({T: compared[T]}))
    assert "together" not in capsys.readouterr().out


def test_the_verdict_holds_it(tmp_path, monkeypatch):
    results = Results(Layout(tmp_path / "out")).write()
    one = compare(results.layout, T, TOP)
    monkeypatch.setattr("ifloo.report.reporter.compare", lambda layout, t, top: one)
    monkeypatch.setattr("ifloo.report.reporter.influences.load", lambda path: one.stored)
    reporter = Reporter(results.layout, None, tmp_path / "logs")
    reporter.verdict([T], 6)
    assert json.loads(results.layout.verdict.read_text()).keys() == {"tests", "definitions"}
    reporter.verdict([T, T + 1], 6)
    said = json.loads(results.layout.verdict.read_text())
    assert said.keys() == {"tests", "all_tests", "definitions"}
    assert said["all_tests"]["n_refits"] == 2 * len(ACTUAL)
