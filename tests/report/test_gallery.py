"""The gallery of an image-text model: everything of a row is there, in any language, and nothing covers anything."""

import unicodedata

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgba

from ifloo.errors import InputError
from ifloo.report import Reporter
from ifloo.report.figures.conversation_card import GalleryRow
from ifloo.report.figures.conversation_gallery import ConversationSet, gallery
from ifloo.report.figures.influence import save_figure
from ifloo.report.figures.style import HARMFUL, HELPFUL
from ifloo.report.figures.text_layout import ELLIPSIS, TextStyle
from ifloo.store import Layout
from tests.report.drawn import check_readable, texts_of
from tests.verdict.results import IDS, SCORES, Results, T

RNG = np.random.default_rng(0)
LONG = "Describe the picture in detail, and say what a careful observer would notice at once. " * 5
CHINESE = "请仔细描述这张图片：前景中有什么？背景里有什么？（如果有不寻常的地方，也请指出。）"


def image(height, width, *channels):
    return RNG.integers(0, 256, (height, width, *channels), dtype=np.uint8)


ROWS = [
    GalleryRow(101, [image(48, 64, 3)], "What is in the picture?", "A red square.", -0.0123),
    GalleryRow(20231, [image(64, 48, 3)], CHINESE, "图中是一只气球。", -0.0101),
    GalleryRow(7, [image(48, 64, 3), image(48, 48)], "Solve $x^2 = \\frac{1}{2}$ 🎉", "C:\\temp\\new $", -0.0098),
    GalleryRow(8, [], CHINESE * 3, "没有图片。", -7e-3),
    GalleryRow(1234567, [image(10, 60, 3)] * 7, LONG, LONG, -1.23e-15, answered=LONG),
    GalleryRow(9, [], "", "", -6e-3),
    GalleryRow(10, [image(8, 8)], "w" * 300, "カタカナ", -5e-3),
    GalleryRow(11, [image(1, 500)], LONG + CHINESE, "no", -4e-3),
]
TEST = GalleryRow(5, [image(48, 64, 3)], "牌子上写着什么？", "出口 (exit)", answered="“入口” \ud83d")


def drawn(helpful=8, harmful=8, test=TEST):
    harm = [GalleryRow(r.id, r.pictures, r.question, r.answer, -r.score) for r in ROWS[::-1]]
    return gallery(test, ROWS[:helpful], harm[:harmful], title="test 5")


def words_of(figure):
    return " ".join(text.get_text() for text in texts_of(figure))


@pytest.mark.parametrize(("helpful", "harmful"), [(8, 8), (5, 1), (1, 0), (0, 2), (0, 0)])
@pytest.mark.parametrize("test", [TEST, ROWS[3], ROWS[4]])
def test_no_text_covers_another_or_leaves_the_picture(helpful, harmful, test):
    check_readable(drawn(helpful, harmful, test))


def test_a_row_shows_all_it_holds():
    words = words_of(drawn(3, 1))
    for text in ("test 5", "What is in the picture?", "A red square.", "id 101", "\N{MINUS SIGN}0.0123", "+0.004"):
        assert text in words
    for text in ("the model answered", "“入口” [U+D83D]", "出口 (exit)", "牌子上写着什么？"):
        assert text in words
    assert "图中是一只气球。" in words
    assert "3 more" in words_of(drawn(5, 0))


def test_what_looks_like_mathematics_is_drawn_as_it_stands(tmp_path):
    figure = drawn(3, 0)
    words = words_of(figure)
    assert "$x^2 = \\frac{1}{2}$ [party" in words
    assert "C:\\temp\\new $" in words
    assert not any(text.get_parse_math() for text in texts_of(figure))
    save_figure(figure, tmp_path / "gallery.png")
    assert (tmp_path / "gallery.png").read_bytes().startswith(b"\x89PNG")


def test_images_keep_their_shape_and_values():
    figure = drawn(8, 0)
    figure.canvas.draw()
    shown = [TEST.pictures, *(row.pictures[:4] for row in ROWS)]
    expected = [picture for pictures in shown for picture in pictures]
    assert len(figure.axes) == len(expected)
    for axes, picture in zip(figure.axes, expected, strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), picture)
        box = axes.get_window_extent()
        assert box.width / box.height == pytest.approx(picture.shape[1] / picture.shape[0])
        if picture.ndim == 2:
            assert axes.images[0].get_clim() == (0, 255)


def test_scores_have_the_colour_of_their_kind():
    colours = {text.get_text(): to_rgba(text.get_color()) for text in texts_of(drawn(1, 1))}
    assert colours["\N{MINUS SIGN}0.0123"] == to_rgba(HELPFUL)
    assert colours["+0.004"] == to_rgba(HARMFUL)


@pytest.mark.parametrize(
    ("picture", "said"),
    [
        (np.zeros((4, 4)), "float64 with shape (4, 4)"),
        (np.zeros((4, 4, 4), np.uint8), "uint8 with shape (4, 4, 4)"),
        (np.zeros((0, 4), np.uint8), "uint8 with shape (0, 4)"),
        (np.zeros(4, np.uint8), "uint8 with shape (4,)"),
    ],
)
def test_what_is_no_image_is_refused(picture, said):
    with pytest.raises(InputError) as caught:
        gallery(TEST, [GalleryRow(3, [image(2, 2), picture], "", "", 0.1)], [], title="")
    assert str(caught.value) == (
        f"Picture 1 of training row 3 is {said}; a card shows uint8 images, [height, width] or [height, width, 3], "
        "that are not empty."
    )


def test_the_settings_of_matplotlib_stay_as_they_are():
    before = dict(matplotlib.rcParams)
    drawn(1, 1)
    assert dict(matplotlib.rcParams) == before


def gb2312():
    pairs = [bytes([row, column]) for row in range(0xA1, 0xF8) for column in range(0xA1, 0xFF)]
    return {text for text in (pair.decode("gb2312", "ignore") for pair in pairs) if text}


@pytest.mark.parametrize("bold", [False, True])
def test_every_chinese_character_in_common_use_can_be_read(bold):
    characters = {c for c in gb2312() if unicodedata.category(c) == "Lo"}
    assert len(characters) >= 6763 + 2 * 83  # and kana
    lettering = TextStyle(9, bold)
    assert {c for c in characters if lettering.readable(c) != c} == set()


@pytest.mark.parametrize(
    ("text", "read"),
    [
        (" two \n\t words ", "two words"),
        ("🎉", "[party popper]"),
        ("👍🏽 ok", "[thumbs up sign] ok"),
        ("a\u200db\ufe0f\ufeffc\x00", "abc"),
        ("\U00020bb7", "[U+20BB7]"),
        ("\ue000", "[U+E000]"),
        ("e\u0301", "é"),
    ],
)
def test_what_no_font_has_is_named(text, read):
    assert TextStyle(9).readable(text) == read


def test_lines_break_where_they_may_and_stay_in_their_width():
    lettering = TextStyle(9)
    for text in (LONG, CHINESE * 2, "w" * 99, "a " + CHINESE + " https://example.org/" + "path/" * 30):
        lines = lettering.lines(text, 1.5, 99)
        assert "".join(lines).replace(" ", "") == text.replace(" ", "")
        assert all(lettering.width(line) <= 1.5 for line in lines)
        assert not any(line[0] in "，。？！）" or line[-1] in "（" for line in lines)
        cut = lettering.lines(text, 1.5, 2)
        assert len(cut) == 2
        assert cut[0] == lines[0]
        assert cut[1].endswith(ELLIPSIS)
        assert lettering.width(cut[1]) <= 1.5
    assert lettering.lines("", 1.0, 3) == []
    assert lettering.lines("short", 1.0, 3) == ["short"]
    assert lettering.lines("wi", 0.01, 3) == ["w", "i"]


class Conversations:
    """Rows as a data set of images and texts has them."""

    def question(self, id_):
        return f"question {id_}"

    def answer(self, id_):
        return f"answer {id_}"

    def pictures(self, id_):
        return [] if id_ % 2 else [image(6, 8, 3)]


class Data:
    train_set = test_set = Conversations()


def test_the_report_of_conversations_has_a_gallery(tmp_path, monkeypatch):
    assert isinstance(Conversations(), ConversationSet)
    results = Results(Layout(tmp_path / "out")).write()
    figures = []
    monkeypatch.setattr("ifloo.report.reporter.save_figure", lambda figure, path: figures.append((path, figure)))
    Reporter(results.layout, Data(), tmp_path / "logs", {T: "what it said"}).run([T], 6)
    names = ("influence_distribution", "gallery", "influence_vs_loo")
    assert [path for path, _ in figures] == [results.layout.figure(name, T) for name in names]
    shown = words_of(figures[1][1])
    order = IDS[np.argsort(SCORES, kind="stable")]
    for text in ("what it said", f"question {T}", *(f"answer {i}" for i in (*order[:8], *order[-8:]))):
        assert text in shown
    assert figures[1][1].texts[0].get_text() == f"test {T}"
