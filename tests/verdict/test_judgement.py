"""The verdict in plain words, as the terminal, the page and TensorBoard print it."""

from dataclasses import replace

import pytest

from ifloo.cli import tables
from ifloo.report.html.headline import answer
from ifloo.report.tensorboard import markdown
from ifloo.verdict import DEFINITIONS, Verdict
from ifloo.verdict.judgement import headline_of, judge
from tests.report.html_pages import T, comparison


def _printed(capsys, *compared):
    verdict = Verdict({one.stored.test_id: one for one in compared})
    tables.headline(verdict)
    return verdict, capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("one", "headline", "level"),
    [
        (comparison(), "The predicted changes came true.", "came true"),
        (comparison(slope=1.6), "The predictions are right in order, but not in size.", "right order, wrong size"),
        (comparison(slope=-1.0), "The predicted changes did not come true.", "did not come true"),
        (
            comparison(slope=-1.0, n=5, k=2),
            "The predicted changes did not come true, as far as 5 refits can tell.",
            "did not come true, not certain",
        ),
    ],
)
def test_the_terminal_ends_with_the_headline_of_the_page_and_its_numbers(capsys, one, headline, level):
    verdict, lines = _printed(capsys, one)
    found, n = one.agreement(), len(one.ids)
    numbers = f"All {n} refits: Pearson {found.pearson:.3f}, slope {found.slope:.3f} (1 is exact)."
    assert lines == ["", f"{headline} {numbers}"]
    assert str(judge(found)) == level
    assert headline_of(verdict).text == headline == answer(verdict, {}).headline
    assert markdown.verdict(verdict).startswith(f"**{headline}**\n\n")


def test_each_of_several_tests_has_its_own_level(capsys):
    verdict, lines = _printed(capsys, comparison(), comparison(t=8, slope=-1))
    found = verdict.statistics.row().agreement
    assert lines[1:] == [
        "The predicted changes came true for 1 of 2 test samples. "
        f"All 120 refits: Pearson {found.pearson:.3f}, slope {found.slope:.3f} (1 is exact).",
        "  test 3: came true",
        "  test 8: did not come true",
    ]


def test_definitions_are_those_of_the_weights_that_the_certificate_found():
    plain = Verdict({T: comparison()}).to_json()["definitions"]
    assert plain == DEFINITIONS
    weights = {"rule": "the value of item 1", "values": {"0": 1.0, "1": 5.0}}
    verdict = Verdict({T: comparison()}, objective={"outcome": "weighted", "weights": weights})
    definitions = verdict.to_json()["definitions"]
    assert definitions["predicted"].startswith("drop: -(s - n c_i mean s); zero_weight: -s;")
    assert definitions["J"].startswith("sum_i c_i w_i l_i + R")
    assert "by the value of item 1 (0: 1, 1: 5);" in definitions["J"]
    epoch = {"outcome": "weighted", "weights": None, "epoch": "over the same 4 batches of 8 in each epoch"}
    of_epoch = Verdict({T: comparison()}, objective=epoch).to_json()["definitions"]["J"]
    assert "which weighs its samples as does the mean over the same 4 batches of 8 in each epoch; c_i" in of_epoch
    unweighted = Verdict({T: comparison()}, objective={"outcome": "equal", "weights": None})
    assert unweighted.to_json()["definitions"] == DEFINITIONS


def test_equal_changes_cannot_be_judged(capsys):
    one = comparison(n=2, k=1)
    _, lines = _printed(capsys, one)
    assert judge(one.agreement()).sure is False
    assert lines[-1] == "Whether the predictions are true cannot be judged: nothing varies."


@pytest.mark.parametrize(
    ("slope", "pearson_ci", "slope_ci", "sure"),
    [
        (1.3, (0.97, 0.99), (0.7, 1.6), False),  # both ends beside the band, which lies between them
        (1.3, (0.97, 0.99), (1.28, 1.6), True),
        (1.0, (0.97, 0.99), (0.9, 1.1), True),
        (1.0, (0.4, 0.99), (0.9, 1.1), False),
        (-1.0, (0.97, 0.99), (-1.6, 0.1), True),
    ],
)
def test_a_level_is_certain_if_the_whole_interval_has_it(slope, pearson_ci, slope_ci, sure):
    found = replace(comparison().agreement(), n=20, pearson=0.98, slope=slope, pearson_ci=pearson_ci, slope_ci=slope_ci)
    assert judge(found).sure is sure
