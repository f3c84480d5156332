"""The one-file report: it says what the numbers say, and what is not there it does not show."""

import numpy as np
import pytest

from ifloo.errors import InputError
from ifloo.report import Reporter
from ifloo.report.html.thumbnails import thumbnail
from ifloo.store import CORRECTED, Layout, LossFile, LossRow, Manifest
from ifloo.verdict import LabelErrors
from ifloo.verdict.group_effects import GroupEffect
from ifloo.verdict.small_steps import SmallSteps
from tests.report.html_pages import Data, Pictures, Reader, Words, comparison, written
from tests.verdict.results import ACTUAL, IDS, REMOVED, SCORES, Results, T

# What it says.


@pytest.mark.parametrize(
    ("one", "headline", "tone"),
    [
        (comparison(), "The predicted changes came true.", "good"),
        (comparison(slope=1.6), "The predictions are right in order, but not in size.", "middling"),
        (comparison(noise=0.7), "The predicted changes came true only roughly.", "middling"),
        (comparison(slope=-1.0), "The predicted changes did not come true.", "bad"),
        (comparison(n=5, k=2), "The predicted changes came true, as far as 5 refits can tell.", "middling"),
        (comparison(slope=1.25), "The predicted changes came true, as far as 60 refits can tell.", "middling"),
    ],
)
def test_the_headline_says_what_the_statistics_say(tmp_path, one, headline, tone):
    page = written(tmp_path, [one])
    assert f'<h1 id="headline">{headline}</h1>' in page
    assert f'class="verdict {tone}"' in page
    found = one.agreement()
    assert f"Predicted and actual changes have a Pearson correlation of {found.pearson:.3f}" in page.replace("−", "-")
    assert f"An actual change is {found.slope:.3f} times the predicted one" in page.replace("−", "-")
    if found.n >= 10:
        assert f"[{found.slope_ci[0]:.3f}, {found.slope_ci[1]:.3f}]" in page.replace("−", "-")


def test_tests_that_differ_are_counted(tmp_path):
    page = written(tmp_path, [comparison(), comparison(t=8, slope=-1), comparison(t=9, slope=2)])
    assert '<h1 id="headline">The predicted changes came true for 1 of 3 test samples.</h1>' in page
    for level in ("came true", "did not come true", "right order, wrong size"):
        assert f">{level}</span>" in page


def test_what_stands_against_the_verdict_is_said(tmp_path):
    few = comparison(n=9, k=3, flagged=2, noise_floor=1e-3)
    quiet = int((np.abs(few.actual) <= 1e-3).sum())
    assert quiet
    text = Reader(written(tmp_path, [few])).text
    assert "Test 3: only 9 refits: take the statistics as a hint, and their intervals as too narrow." in text
    assert "Test 3: 2 of 9 refits may be off by more than 5 % of their change." in text
    assert quiet == 1
    assert "Test 3: 1 of 9 changes is below the noise floor and carries no information by itself." in text
    unknown = Reader(written(tmp_path, [comparison(flagged=None, noise_floor=None)])).text
    assert "Test 3: the error of a single refit is unknown: there is no bound and no noise floor." in unknown
    assert "there are no" not in Reader(written(tmp_path, [comparison()])).text


def test_controls_that_say_something_else_are_quoted(tmp_path):
    one = comparison(k=40)
    mixed = one.predicted.copy()
    mixed[one.control] = -mixed[one.control]  # small, so that the large ones alone make the correlation
    one = comparison(k=40, actual=mixed)
    alone = one.statistics.row("random").agreement
    assert alone.pearson < 0
    assert one.agreement().pearson > 0.95
    text = Reader(written(tmp_path, [one])).text.replace("−", "-")
    assert "The predicted changes came true, as far as 60 refits can tell." in text
    assert (
        f"Test 3: by the 20 drawn at random alone the answer is “did not come true” (Pearson {alone.pearson:.3f}, "
        f"slope {alone.slope:.3f})."
    ) in text


def test_a_rough_run_is_called_rough(tmp_path):
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(2, 12))
    steps = SmallSteps(np.arange(12), rng.normal(size=12), noise[0], noise[1], 0.0, None)
    one = comparison(slope=-1, steps=steps)
    assert one.roughness
    reader = Reader(written(tmp_path, [one]))
    assert "This training run does not let its predictions be trusted." in reader.text
    assert one.roughness in reader.text
    assert "Small steps" in reader.text


def test_the_certificate_is_there(tmp_path):
    text = Reader(written(tmp_path, [comparison(seed_spread=0.25)])).text
    for words in (
        "residual 1\u202f×\u202f10⁻¹¹",
        "error of a score ≤ 2\u202f×\u202f10⁻⁹",
        "gradient after refits 1\u202f×\u202f10⁻¹⁰",
        "noise floor 1\u202f×\u202f10⁻⁹",
        "refits flagged 0 of 60",
        "spread of seeds 0.25",
    ):
        assert " ".join(words.split()) in text


def test_the_points_are_those_of_the_comparison(tmp_path):
    one = comparison(other_methods={CORRECTED: np.arange(60.0), "other": np.full(60, np.nan)})
    data = Reader(written(tmp_path, [one])).data
    assert data["methods"] == ["influence scores", "leverage-corrected", "other"]
    assert [row[:3] for row in data["points"]] == [[T, i, one.kinds[i]] for i in range(60)]
    np.testing.assert_array_equal([row[3] for row in data["points"]], one.actual)
    np.testing.assert_array_equal([row[4] for row in data["points"]], one.predicted)
    assert [row[5:] for row in data["points"]] == [[float(i), None] for i in range(60)]
    (view,) = data["views"]
    assert view["fits"][0] == one.agreement().to_json()
    assert view["fits"][2] is None


# Which parts are there.


def test_parts_without_numbers_are_not_there(tmp_path):
    ids = set(Reader(written(tmp_path, [comparison()])).ids)
    assert {"verdict", "certificate", "plotted", "samples", "settings"} <= ids
    assert not {"methods", "checks", "view"} & ids
    groups = (GroupEffect("top_1pct", 6, 0.5, 0.25),)
    full = comparison(groups=groups, other_methods={"tracin": comparison().predicted * 2})
    reader = Reader(
        written(tmp_path, [full, comparison(t=8)], mislabels=LabelErrors(10, 6, {"loss": 4, "tracin": 5}, 1.0))
    )
    assert {"methods", "checks", "view"} <= set(reader.ids)
    for words in ("top_1pct 6 +0.5 +0.25", "loss 4 of 10", "self-influence by tracin 5 of 10", "chance 1 of 10"):
        assert words in reader.text


def test_scores_without_refits_are_shown_and_called_unverified(tmp_path):
    one = comparison().stored
    reader = Reader(written(tmp_path, [], unverified={T: (one, 2)}))
    assert "Nothing has been verified yet." in reader.text
    assert "there are only 2 refits without these samples." in reader.text
    assert "The command “ifloo loo”, with the same settings, does that" in reader.text
    assert "plotted" not in reader.ids
    assert {"certificate", "samples"} <= set(reader.ids)
    assert "came true" not in reader.text
    part = Reader(written(tmp_path, [comparison(t=8)], unverified={T: (one, 0)})).text
    assert "The predicted changes came true. 1 test is not verified yet." in part
    assert "Test 3: not verified, with 0 refits of it so far; “ifloo loo” for this test makes more." in part


def test_the_gallery_holds_pictures_words_and_scores(tmp_path):
    one = comparison()
    order = np.argsort(one.stored.scores, kind="stable")
    images = Reader(written(tmp_path, [one]))
    for i in (*order[:8], *order[-8:]):
        assert f"label {i} id {i}" in images.text
        assert images.data["samples"][str(i)]["pictures"] == [thumbnail(Pictures().picture(i), "")]
    words = Reader(written(tmp_path, [one], Data(Words())))
    for i in (*order[:8], *order[-8:]):
        assert f"question {Words().question(i)} answer {Words().answer(i)}" in words.text
        assert len(words.data["samples"][str(i)]["pictures"]) == (0 if i % 3 == 0 else 2)


def test_a_sample_without_a_picture_has_none(tmp_path):
    class Blank(Pictures):
        def picture(self, id_):
            return None

    reader = Reader(written(tmp_path, [comparison()], Data(Blank())))
    assert {tuple(one["pictures"]) for one in reader.data["samples"].values()} == {()}
    assert "img" not in [tag for tag, _ in reader.tags]


# The command behind it.


def reported(results, tmp_path, tests):
    return Reporter(results.layout, Data(Pictures()), tmp_path / "logs").run(tests, 6)


def test_a_report_of_results_on_disk_shows_settings(tmp_path):
    results = Results(Layout(tmp_path / "exp")).write()
    assert list(reported(results, tmp_path, [T])) == [T]
    reader = Reader(results.layout.report.read_text(encoding="utf-8"))
    for words in ("objective.l2_reg 0.01", "solver CG", "removal drop", "training data (SHA-256) bbbbbbbb"):
        assert words in reader.text
    np.testing.assert_allclose([row[3] for row in reader.data["points"]], ACTUAL, rtol=0, atol=1e-15)
    assert [row[1] for row in reader.data["points"]] == REMOVED.tolist()


@pytest.mark.parametrize("refits", [None, 0, 1, 2])
def test_without_refits_there_is_a_page_and_no_verdict(tmp_path, refits):
    results = Results(Layout(tmp_path / "exp")).write()
    losses = results.layout.loo_losses(T)
    losses.unlink()
    if refits is not None:
        for i in [-1, *REMOVED[:refits].tolist()]:
            LossFile(losses).add(LossRow(i, 0.7 + i * 1e-4))
    assert reported(results, tmp_path, [T]) == {}
    text = Reader(results.layout.report.read_text(encoding="utf-8")).text
    assert "Nothing has been verified yet." in text
    assert f"label {IDS[SCORES.argmin()]} id {IDS[SCORES.argmin()]}" in text
    assert not results.layout.verdict.exists()


def test_scores_of_other_settings_are_no_page(tmp_path):
    results = Results(Layout(tmp_path / "exp")).write()
    results.layout.loo_losses(T).unlink()
    results.influence["solver"] = "another"
    Manifest.at(results.layout.manifest).record("influence", results.influence, {})
    with pytest.raises(InputError) as caught:
        reported(results, tmp_path, [T])
    assert str(caught.value) == (
        f"{results.layout.scores(T)} was made with other settings than {results.layout.manifest} says.\n"
        "  Run `ifloo influence` for this test again, with --overwrite."
    )
    assert not results.layout.report.exists()


# The objective.

EVALUATION = {
    "outcome": "evaluation objective",
    "text": "scores are of the evaluation-mode objective; the gradient of a training step differs by 6 %, cosine .998",
}


def test_the_objective_is_one_sentence_for_all_tests_and_a_caution_where_it_was_not_trained(tmp_path):
    text = Reader(written(tmp_path, [comparison(), comparison(t=8)], objective=EVALUATION)).text
    assert f"Objective, evaluation objective: {EVALUATION['text']}." in text
    assert f"S{EVALUATION['text'][1:]}." in text
    equal = {"outcome": "equal", "text": "a training step has the gradient of J (relative difference 1.1e-07)"}
    text = Reader(written(tmp_path / "equal", [comparison()], objective=equal)).text
    assert text.count(equal["text"]) == 1
    assert f"Objective, equal: {equal['text']}." in text
    assert "Objective, " not in Reader(written(tmp_path / "none", [comparison()])).text


def test_a_caution_on_several_tests_is_listed_once(tmp_path):
    tests = [comparison(t=t, n=9, k=3, noise_floor=None) for t in (3, 8)]
    text = Reader(written(tmp_path, tests)).text
    assert text.count("only 9 refits: take the statistics as a hint, and their intervals as too narrow.") == 1
    assert "Tests 3, 8: only 9 refits: take the statistics as a hint" in text


def test_weights_of_samples_are_part_of_the_definitions(tmp_path):
    weights = {"rule": "the value of item 1", "values": {"0": 1.0, "1": 5.0}}
    text = Reader(written(tmp_path, [comparison()], objective={**EVALUATION, "weights": weights})).text
    assert "drop: -(s - n c_i mean s); zero_weight: -s;" in text
    assert "by the value of item 1 (0: 1, 1: 5);" in text
