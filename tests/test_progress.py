"""Progress of work: parts of a whole, and bars that stand on stderr while it goes on."""

import ifloo.curvature.operator
import ifloo.solvers.base
from ifloo.progress import OnProgress, bar, no_progress, part_of, ticking


def test_equal_parts_report_as_one_whole():
    seen = []
    for number in range(3):
        report = part_of(lambda done, total: seen.append((done, total)), number, 3)
        report(1, 2)
        report(2, 2)
    assert seen == [(1, 6), (2, 6), (3, 6), (4, 6), (5, 6), (6, 6)]


def test_a_bar_comes_with_the_first_part_and_goes_with_the_last(capsys):
    tick = bar("factor")
    assert capsys.readouterr().err == ""
    for total in (4, 2):  # the next piece of work draws a line of its own
        tick(1, total)
        assert f"0/{total}" in capsys.readouterr().err
        tick(total, total)
        assert capsys.readouterr().err.endswith("\r")


def test_a_bar_that_is_not_shown_draws_nothing(capsys):
    tick = bar("factor", shown=False)
    tick(1, 2)
    tick(2, 2)
    no_progress(1, 2)
    assert capsys.readouterr().err == ""


def test_a_line_is_there_before_the_first_part(capsys):
    with ticking("scores", "part") as tick:
        assert "scores: 0part" in capsys.readouterr().err
        tick(3, 3)
    assert capsys.readouterr().err.endswith("\r")


def test_the_former_names_are_the_same_objects():
    assert ifloo.solvers.bar is bar
    assert ifloo.solvers.base.silent is no_progress
    assert ifloo.curvature.operator.Tick is OnProgress
