"""TensorBoard's files read back: every number is that of the stored results, in one run folder."""

import html
import io
import json
import re

import numpy as np
import pytest
from markdown import markdown
from PIL import Image

from ifloo.report import Reporter
from ifloo.report.tensorboard import event_file
from ifloo.store import Layout, Manifest, influences
from tests.report.boards import (
    EVIL,
    OTHER,
    SANITISED,
    SELF,
    Board,
    Data,
    Pictured,
    Talk,
    add_self_influence,
    add_test,
    gradients,
    single,
)
from tests.verdict.results import BASE, IDS, REMOVED, SCORES, N, Results, T, stored

# Scalars, histograms, images.


def test_the_scores_are_told_by_histogram_and_percentile(results, logs):
    read = Board(results, logs)
    found = read.histogram(f"3 scores/test {T}")
    assert (found.num, found.min, found.max) == (N, SCORES.min(), SCORES.max())
    assert found.sum == pytest.approx(SCORES.astype(float).sum(), rel=0, abs=1e-15)
    edges = np.array(found.bucket_limit)
    assert 0.0 in edges  # no bar holds helpful and harmful samples
    below = [int((SCORES.astype(float) < edge).sum()) for edge in edges[:-1]] + [N]
    assert np.cumsum(found.bucket).tolist() == below
    expected = single(np.percentile(SCORES.astype(float), range(101)))
    assert read.series(f"3 scores/by percentile, test {T}") == [list(pair) for pair in enumerate(expected)]


def test_self_influence_is_told_as_the_scores_are(results, logs):
    add_self_influence(results)
    read = Board(results, logs)
    for name, tag in (("last_layer", "last layer"), ("loss", "loss")):
        found = read.histogram(f"4 self-influence/{tag}")
        assert (found.num, found.max) == (N, SELF[name].max())
        expected = single(np.percentile(SELF[name], range(101)))
        assert [y for _, y in read.series(f"4 self-influence/by percentile, {tag}")] == expected


def test_scores_that_are_all_zero_have_a_histogram(results, logs):
    influences.save(results.layout.scores(OTHER), stored(np.zeros(N), results.influence, test_id=OTHER))
    found = Board(results, logs, (T, OTHER)).histogram(f"3 scores/test {OTHER}")
    assert (found.num, sum(found.bucket), found.min, found.max) == (N, N, 0, 0)


def test_the_residual_curve_is_the_stored_one(results, logs):
    add_test(results)
    read = Board(results, logs, (T, OTHER))
    found = influences.load(results.layout.scores(T)).residual_curve
    expected = [[int(step), value] for step, value in zip(found[:, 0], single(found[:, 1]), strict=True)]
    assert read.series(f"5 solver/residual, test {T}") == expected
    assert f"5 solver/residual, test {OTHER}" not in read.tags["scalars"]  # scores of before it was kept


class Awkward(Pictured):
    """Captions that would be read as a formula, break a line or be far too long, and one sample without a picture."""

    def caption(self, id_):
        return ("$\\frac{", "two\nlines\tand \x07", "x" * 500)[id_ % 3]


@pytest.mark.parametrize("refits", [True, False])
def test_pictures_are_those_of_the_files(results, logs, refits):
    t = T
    if not refits:
        add_test(results, t := OTHER, refits=False)
    Reporter(results.layout, Data(Awkward), logs).run([t], 6)
    names = {"2 helpful and harmful/samples": "most_influential", "3 scores/distribution": "influence_distribution"}
    if refits:
        names["1 verdict/influence against refits"] = "influence_vs_loo"
    read = Board.of(logs)
    assert set(read.tags["images"]) == {f"{tag}, test {t}" for tag in names}
    for tag, name in names.items():
        (shown,) = read.events.Images(f"{tag}, test {t}")
        picture = Image.open(io.BytesIO(shown.encoded_image_string))
        assert picture.size == (shown.width, shown.height)
        assert len(picture.getcolors(1 << 24)) > 20  # something is drawn
        if refits:
            with Image.open(results.layout.figure(name, t)) as saved:
                assert shown.width == pytest.approx(saved.width * 100 / 150, rel=0, abs=1)  # dots per inch


def test_several_tests_stand_side_by_side_in_units_of_their_largest(results, logs):
    add_test(results)
    read = Board(results, logs, (OTHER, T))
    tag = "3 scores/all tests, in units of the largest"
    assert [one.step for one in read.events.Histograms(tag)] == [T, OTHER]
    found = read.histogram(tag, T)
    counts = np.histogram(SCORES / np.abs(SCORES).max().astype(float), bins=event_file.UNITS)[0]
    assert [int(x) for x in found.bucket if x] == counts[counts > 0].tolist()


# The verdict.

STATISTICS = ("pearson", "spearman", "slope", "intercept", "median_rel_err", "n_refits", "worst_residual")


def test_the_verdict_of_one_test_and_the_settings_are_in_hparams(tmp_path, logs):
    settings = {"damping": 0.25, "solver": {"class": "CG", "rtol": 1e-8, "max_bytes": 9}, "loader": {"shuffle": True}}
    results = Results(Layout(tmp_path / "set"), influence={**BASE, **settings}).write()
    read = Board(results, logs)
    verdict = json.loads(results.layout.verdict.read_text())["tests"][str(T)]
    experiment = read.plugin("_hparams_/experiment").experiment
    tags = [one.name.tag for one in experiment.metric_infos]
    assert {f"6 statistics/{name}" for name in STATISTICS} <= set(tags)
    for tag in tags:
        assert read.series(tag) == [[0, *single([verdict[tag.removeprefix("6 statistics/")]])]]
    start = read.plugin("_hparams_/session_start_info").session_start_info.hparams
    given = {name: getattr(value, value.WhichOneof("kind")) for name, value in start.items()}
    assert given == {
        "attribution.damping": 0.25,
        "attribution.solver": "CG",
        "attribution.solver.rtol": 1e-8,
        "data.shuffle": "True",
        "model.l2_reg": 0.01,
        "refit.removal": "drop",
    }
    assert {one.name for one in experiment.hparam_infos} == set(given)
    assert read.plugin("_hparams_/session_end_info").session_end_info.status == 1  # success


def test_the_verdict_of_several_is_pooled_and_told_by_test(results, logs):
    add_test(results)
    read = Board(results, logs, (T, OTHER))
    verdict = json.loads(results.layout.verdict.read_text())
    for name in STATISTICS[:6]:
        expected = verdict["all_tests"].get(name, 2 * len(REMOVED))
        assert read.series(f"6 statistics/{name}") == [[0, *single([expected])]]
        by_test = [[t, *single([verdict["tests"][str(t)][name]])] for t in (T, OTHER)]
        assert read.series(f"7 statistics by test/{name}") == by_test
    assert read.series("6 statistics/worst_residual") == [[0, *single([3e-11])]]
    table = read.text("1 verdict")
    pearson = verdict["all_tests"]["pearson"]
    assert re.search(rf"^\| all \| all \| {2 * len(REMOVED)} \| {pearson:.4f} \(", table, re.M)
    assert [line.split(" | ")[0] for line in table.splitlines() if " top" in line] == ["| all", f"| {T}", f"| {OTHER}"]


def test_scores_without_refits_are_shown_without_a_verdict(results, logs):
    add_test(results, refits=False)
    read = Board(results, logs, (OTHER,), gradients=gradients())
    assert read.histogram(f"3 scores/test {OTHER}").num == N
    assert not [tag for tag in read.tags["scalars"] if tag[0] in "67"]
    assert "1 verdict/text_summary" not in read.tags["tensors"]
    groups = re.findall(r"^\| \*\*(.*?)\*\*", read.text("0 guide"), re.M)
    assert groups == ["2 helpful and harmful", "3 scores", "PROJECTOR"]


# Text.


def test_the_objective_is_stated_with_and_without_refits(results, logs):
    text = "a training step weighs its samples by the value of item 1 (0: 1, 1: 5); J has these weights"
    record = {"outcome": "weighted", "text": text, "weights": {"rule": "the value of item 1", "values": {"0": 1}}}
    manifest = Manifest.at(results.layout.manifest)
    manifest.record("influence", results.influence, {"objective": record})
    read = Board(results, logs)
    assert html.unescape(read.text("0 objective")) == f"**weighted**: {text}"
    line = "| **0 objective** | TEXT: whether the scored objective J is the one that was trained."
    assert line in html.unescape(read.text("0 guide"))


def test_scores_without_a_comparison_have_no_text_of_it(results, logs):
    read = Board(results, logs)
    assert "0 objective/text_summary" not in read.tags["tensors"]
    assert "0 objective" not in read.text("0 guide")


@pytest.mark.parametrize("kind", [Pictured, Talk])
def test_text_of_samples_can_inject_nothing(results, logs, kind):
    scores = SCORES.copy()
    scores[3] = -1  # the sample whose caption is evil comes first
    influences.save(results.layout.scores(T), stored(scores, results.influence))
    read = Board(results, logs, data=Data(kind), outcomes={T: EVIL})
    text = read.text(f"2 helpful and harmful/samples, test {T}")
    # What TensorBoard makes of it, before it takes out what is dangerous: there must be nothing to take out.
    shown = markdown(text, extensions=["markdown.extensions.tables", "markdown.extensions.fenced_code"])
    tags = {re.split(r"[ >]", tag)[0] for tag in re.findall(r"<([^/][^>]*>)", shown)}
    assert tags == {"p", "strong", "table", "thead", "tbody", "tr", "th", "td"}
    cells = [html.unescape(cell) for cell in re.findall(r"<td>(.*?)</td>", shown)]
    assert cells.count(SANITISED) == (1 if kind is Pictured else 17)
    (model,) = re.findall(r"<p>The model: (.*)</p>", shown)
    assert html.unescape(model) == SANITISED
    first = cells.index(str(IDS[3]))
    assert cells[first : first + 3] == [str(IDS[3]), "\N{MINUS SIGN}1", SANITISED]


def test_long_text_is_cut(results, logs):
    class Long(Pictured):
        def caption(self, id_):
            return "x" * 1000

    text = Board(results, logs, data=Data(Long)).text(f"2 helpful and harmful/samples, test {T}")
    assert set(re.findall(r"x+…?", text)) == {"x" * 299 + "…"}


class Flipped(Data):
    """Wrong are the samples of largest loss but one, and those of smallest."""

    corrupted_ids = IDS[np.argsort(-SELF["loss"])[[1, 2, -2, -1]]].tolist()


def test_wrong_labels_are_told_and_drawn_beside_self_influence(results, logs):
    add_self_influence(results)
    Reporter(results.layout, Flipped(), logs).run([T], 6)
    read = Board.of(logs)
    ids, first = np.array(Flipped.corrupted_ids), {name: IDS[np.argsort(-SELF[name])][:4] for name in SELF}
    layer, loss = (int(np.isin(first[name], ids).sum()) for name in ("last_layer", "loss"))
    assert loss == 2
    assert read.text("4 self-influence/wrong labels") == (
        "4 training answers are wrong on purpose. Found among the first 4 rows of each ranking (one in 10):\n\n"
        f"| ranking | found |\n| --- | --- |\n| self-influence by last_layer | {layer} |\n| loss | {loss} |\n"
        "| by chance | 0.4 |"
    )
    (shown,) = read.events.Images("4 self-influence/wrong labels")
    with Image.open(results.layout.label_errors) as saved:
        assert shown.width == pytest.approx(saved.width * 100 / 150, rel=0, abs=1)  # dots per inch
    assert len(Image.open(io.BytesIO(shown.encoded_image_string)).getcolors(1 << 24)) > 20  # something is drawn


def test_where_no_label_is_known_to_be_wrong_nothing_is_said_of_them(results, logs):
    add_self_influence(results)
    Reporter(results.layout, Data(), logs).run([T], 6)
    read = Board.of(logs)
    assert not any("wrong labels" in tag for tags in (read.tags["images"], read.tags["tensors"]) for tag in tags)
