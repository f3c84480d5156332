"""Answers known to be wrong: counted among the rows that stand first, or left out for a ranking of another model."""

import json
import logging

import numpy as np
import pytest

from ifloo.cli import tables
from ifloo.data.protocol import DataNotes
from ifloo.report import Reporter
from ifloo.stages.scores.self_influence import SECTION as WRITTEN
from ifloo.store import Layout, Manifest, StoredSelfInfluence, self_influence, settings_stamp
from ifloo.verdict.label_errors import NAMES, SECTION, find_label_errors, self_influences
from tests.report import boards
from tests.verdict.results import BASE, IDS, N, Results, T

COMPARED = {**BASE, "damping": 1e-3}
AGAIN = "  Run `ifloo influence` with --attribution.self_influence true again, with --overwrite."


WRONG = tuple(IDS[[4, 7, 20, 33]].tolist())


class Data:
    corrupted_ids = WRONG


class Shown(boards.Data):
    corrupted_ids = WRONG


def rankings(tracin=True):
    rng = np.random.default_rng(0)
    values = {name: rng.random(N) for name in ("loss", "last_layer", "tracin")}
    values["tracin"][[4, 7, 33]] += 2  # three of the first four
    values["last_layer"][[4, 7, 33]] -= 2
    values["last_layer"][20] += 2
    values["loss"][[4, 7, 20, 33]] -= 2
    return values if tracin else {**values, "tracin": None}


def write(layout, compared=COMPARED, tracin=True, **changes):
    Manifest.at(layout.manifest).record(SECTION, compared, {})
    settings = {"damping": 1e-3, "definitions": "", "settings": settings_stamp(compared), **changes}
    self_influence.save(layout.self_influence, StoredSelfInfluence(IDS, **rankings(tracin), **settings))


@pytest.fixture
def layout(tmp_path):
    return Results(Layout(tmp_path / "out")).write().layout


def test_the_section_is_the_one_written():
    assert SECTION == WRITTEN


def test_each_ranking_is_told_with_what_chance_would_find(layout, tmp_path, capsys):
    write(layout)
    reporter = Reporter(layout, Data(), tmp_path / "logs")
    compared = reporter.verdict([T], 6)
    expected = {"corrupted": 4, "looked_at": 4, "tracin": 3, "last_layer": 1, "loss": 0, "chance": 0.4}
    assert json.loads(layout.verdict.read_text())["mislabels"] == expected
    tables.verdict(compared)
    assert capsys.readouterr().out.endswith(
        "\n4 training answers are wrong on purpose; among the 4 rows (10 %) of largest\n"
        "  self-influence by tracin     are 3 of them (chance: 0.4)\n"
        "  self-influence by last_layer are 1 of them (chance: 0.4)\n"
        "  loss                         are 0 of them (chance: 0.4)\n"
    )


def test_exact_rankings_are_told_with_their_certificate(layout, tmp_path, capsys):
    own = {name: rankings()["tracin"] for name in ("self_influence", "left_out_loss")}
    write(layout, tracin=False, **own, residual=3e-13)
    reporter = Reporter(layout, Data(), tmp_path / "logs")
    compared = reporter.verdict([T], 6)
    expected = {
        "corrupted": 4,
        "looked_at": 4,
        "self_influence": 3,
        "last_layer": 1,
        "left_out_loss": 3,
        "loss": 0,
        "chance": 0.4,
        "residual": 3e-13,
    }
    assert list(json.loads(layout.verdict.read_text())["mislabels"].items()) == list(expected.items())
    tables.verdict(compared)
    assert capsys.readouterr().out.endswith(
        "\n4 training answers are wrong on purpose; among the 4 rows (10 %) of largest\n"
        "  self-influence               are 3 of them (chance: 0.4)\n"
        "  self-influence by last_layer are 1 of them (chance: 0.4)\n"
        "  loss when left out           are 3 of them (chance: 0.4)\n"
        "  loss                         are 0 of them (chance: 0.4)\n"
        "  certificate: worst residual of the solves behind self-influence 3.0e-13\n"
    )


def test_every_ranking_has_a_name(layout):
    own = {name: rankings()["tracin"] for name in ("self_influence", "left_out_loss")}
    write(layout, **own)
    found = find_label_errors(self_influences(layout), WRONG)
    assert list(found.ranked) == list(NAMES)
    for name, wrong in found.ranked.items():
        assert int(wrong[: found.rows_checked].sum()) == found.found[name]
        assert int(wrong.sum()) == 4


def test_a_ranking_that_is_not_there_is_not_told(layout):
    write(layout, tracin=False)
    assert find_label_errors(self_influences(layout), WRONG).to_json().keys() == {
        "corrupted",
        "looked_at",
        "last_layer",
        "loss",
        "chance",
    }


def test_where_no_answer_is_known_to_be_wrong_nothing_is_said(layout):
    assert find_label_errors(self_influences(layout), WRONG) is None  # no file
    write(layout)
    assert find_label_errors(self_influences(layout), DataNotes(object()).corrupted_ids) is None

    class Clean:
        corrupted_ids = ()

    assert find_label_errors(self_influences(layout), DataNotes(Clean()).corrupted_ids) is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"settings": "0" * 64}, f"it was made with other settings than the manifest says.\n{AGAIN}"),
        (
            {"compared": {**COMPARED, "weights": "c" * 8}},
            f"it is of another base model (weights: cccccccc, not aaaaaaaa).\n{AGAIN}",
        ),
    ],
)
def test_that_of_another_model_is_left_out(layout, caplog, changes, reason):
    write(layout, **changes)
    with caplog.at_level(logging.WARNING):
        assert find_label_errors(self_influences(layout), WRONG) is None
    warning = f"Self-influence is left out of the verdict: {reason}"
    assert caplog.messages == [warning]
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        verdict = Reporter(layout, Shown(), layout.root / "logs").run([T], 6)  # reads the file once
    assert verdict.mislabels is None
    assert caplog.messages == [warning]
