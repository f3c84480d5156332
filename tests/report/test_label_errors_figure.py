"""The picture of how fast wrong labels are found: the lines are the counts, and it is written with the report."""

import numpy as np
import pytest
from matplotlib.colors import to_hex

from ifloo.errors import InputError
from ifloo.report.figures.label_errors import _LOOKS, label_errors
from ifloo.store import Layout
from ifloo.verdict.label_errors import NAMES, LabelErrors
from tests.report.drawn import check_readable

N, LOOKED_AT = 40, 4


def ranking(*places: int) -> np.ndarray:
    wrong = np.zeros(N, dtype=bool)
    wrong[list(places)] = True
    return wrong


def found(**ranked: np.ndarray) -> LabelErrors:
    counts = {name: int(wrong[:LOOKED_AT].sum()) for name, wrong in ranked.items()}
    return LabelErrors(2, LOOKED_AT, counts, 0.2, ranked)


def lines(axes):
    """By legend text: the points of each line."""
    return {line.get_label(): line.get_xydata() for line in axes.lines if not line.get_label().startswith("_")}


def test_lines_are_the_counts_of_each_ranking():
    figure = label_errors(found(self_influence=ranking(0, 9), loss=ranking(1, 2)))
    near, whole = figure.axes
    assert (near.get_xlim(), whole.get_xlim()) == ((0, 0.2), (0, 1))
    for axes in (near, whole):
        drawn = lines(axes)
        assert list(drawn) == ["self-influence: 1 of 2", "loss: 2 of 2", "by chance: 0.2 of 2"]
        x, y = drawn["self-influence: 1 of 2"].T
        np.testing.assert_allclose(x, np.arange(N + 1) / N)
        np.testing.assert_array_equal(y, [0.0] + 9 * [0.5] + 31 * [1.0])
        np.testing.assert_array_equal(drawn["loss: 2 of 2"][:4, 1], [0, 0, 0.5, 1])
        np.testing.assert_array_equal(drawn["by chance: 0.2 of 2"], [[0, 0], [1, 1]])
    assert near.get_title(loc="left") == "2 of 40 labels are wrong: how fast are they found?"
    (mark,) = (line for line in near.lines if line.get_label().startswith("_"))
    assert list(mark.get_xdata()) == [0.1, 0.1]
    assert figure.legends[0].get_title().get_text() == "found in the first 10% of the data"


def test_every_ranking_has_a_look_of_its_own():
    assert _LOOKS.keys() == NAMES.keys()
    assert len({to_hex(colour) for colour, _ in _LOOKS.values()}) == len(NAMES)


def test_it_can_be_read():
    check_readable(label_errors(found(**{name: ranking(0, k) for k, name in enumerate(NAMES, 1)})))


@pytest.mark.parametrize(
    ("ranked", "count"), [({}, 0), ({"loss": np.zeros(N, dtype=bool)}, 1)], ids=["no ranking", "no wrong label"]
)
def test_nothing_to_draw(ranked, count):
    with pytest.raises(InputError) as caught:
        label_errors(found(**ranked))
    assert str(caught.value) == (
        f"The picture of label errors needs rankings with wrong labels in them; got {count} rankings and 2 wrong "
        "labels."
    )


def test_it_has_a_name_of_its_own(tmp_path):
    assert Layout(tmp_path).label_errors == tmp_path / "figs" / "label_errors.png"
