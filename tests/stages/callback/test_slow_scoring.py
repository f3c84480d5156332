"""A scoring that takes long shows a line, then a bar with the time left; a short one shows nothing."""

import time

import pytest

from ifloo.attribution import GradientDot
from ifloo.stages import InfluenceCallback
from ifloo.stages.callback.slow_scoring import shown_when_slow
from tests.stages.callback.fits import N, Stated, fitted, loader, samples

QUERIES = samples(2, seed=1)[:]
LINE = f"influence: scoring {N} training samples against 2 test samples after epoch 3 ..."


class Slow(GradientDot):
    """Takes longer than the time without a line, except in the trial."""

    def scores(self, trained, queries, tick=None):
        if trained.objective.n == N:
            time.sleep(0.3)
        return super().scores(trained, queries, *([tick] if tick else []))


@pytest.mark.parametrize("slow", [True, False])
def test_only_a_slow_scoring_shows_something(tmp_path, capfd, monkeypatch, slow):
    monkeypatch.setattr("ifloo.stages.callback.slow_scoring.SECONDS", 0.1 if slow else 60.0)
    fitted(Stated(), loader(), [InfluenceCallback(QUERIES, method=Slow())], tmp_path)
    err = capfd.readouterr().err
    assert (LINE in err) == slow
    assert (f"/{N} [" in err) == slow  # the bar
    assert ("influence" in err) == slow


def test_a_further_scoring_tells_how_long_the_last_one_took(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("ifloo.stages.callback.slow_scoring.SECONDS", 0.1)
    fitted(Stated(), loader(), [InfluenceCallback(QUERIES, method=Slow(), every_n_epochs=2)], tmp_path)
    lines = [one for one in capfd.readouterr().err.splitlines() if "scoring" in one]
    assert lines[0].endswith("test samples after epoch 2 ...")
    assert lines[1].endswith("test samples after epoch 3 (the last time it took 0 s) ...")


def test_another_total_is_another_bar(capfd):
    with shown_when_slow("a line", 0.0) as tick:
        time.sleep(0.05)
        for total in (4, 9):
            for done in range(1, total + 1):
                tick(done, total)
    err = capfd.readouterr().err
    assert err.count("a line") == 1
    assert "/4 [" in err
    assert "/9 [" in err


def test_an_error_within_ends_the_display(capfd):
    with pytest.raises(ValueError, match=r"^broken$"), shown_when_slow("a line", 0.05):
        raise ValueError("broken")
    time.sleep(0.15)
    assert capfd.readouterr().err == ""
