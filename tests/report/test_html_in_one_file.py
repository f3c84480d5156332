"""The report as one file: it needs nothing else, it can be mailed, and nothing in data gets out of its place."""

import base64
import hashlib
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ifloo.report.html.page as page_module
from ifloo.errors import InputError
from ifloo.report import Reporter
from ifloo.report.html import write_html
from ifloo.report.html.page import script_json
from ifloo.report.html.samples import SampleCache
from ifloo.report.html.thumbnails import SIDE, thumbnail
from ifloo.store import Layout
from ifloo.verdict import Verdict
from tests.report.html_pages import NASTY, Data, Pictures, Reader, Words, comparison, written
from tests.verdict.results import Results, T

MOST_BYTES = 6_000_000  # of a report on 500 points with thumbnails: what can be mailed


def test_nothing_is_fetched(tmp_path):
    reader = Reader(written(tmp_path, [comparison(), comparison(t=8)]))
    assert {link for link in reader.links if not link.startswith(("#", "data:"))} == set()
    (style,) = [text for tag, _, text in reader.blocks if tag == "style"]
    assert "url(" not in style
    assert "@import" not in style
    assert "http" not in (Path(page_module.__file__).parent / "report.css").read_text()


def test_only_the_scripts_of_the_package_may_run(tmp_path):
    page = written(tmp_path, [comparison()])
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    scripts = Reader(page).scripts
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    assert len(hashes) == 2
    assert policy == (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src "
        + " ".join(f"'sha256-{digest}'" for digest in hashes)
        + "; base-uri 'none'; form-action 'none'"
    )


def test_nothing_in_data_becomes_markup(tmp_path):
    tame = Words(["plain words"] * len(NASTY))
    one = comparison(other_methods={"</script><b>method</b>": comparison().predicted})
    again = comparison(other_methods={"method": comparison().predicted})
    wild = Reader(written(tmp_path / "wild", [one], Data(Words(NASTY))))
    assert wild.tags == Reader(written(tmp_path / "tame", [again], Data(tame))).tags
    assert len(wild.scripts) == 2
    captions = {sample["caption"] for sample in wild.data["samples"].values()}
    for text in NASTY[:4]:
        assert any(caption.startswith(text) for caption in captions)
    order = np.argsort(one.stored.scores, kind="stable")
    shown = {NASTY[i % len(NASTY)] for i in (*order[:8], *order[-8:])} & set(NASTY[:4])
    assert len(shown) >= 3
    assert all(text in wild.text for text in shown)
    assert any("\ud83d" in caption for caption in captions)  # JSON keeps what UTF-8 cannot
    assert wild.data["methods"][1] == "</script><b>method</b>"


def test_labels_and_outcomes_do_not_become_markup(tmp_path):
    layout = Layout(tmp_path / "<b>exp & co")
    tests = Data(Pictures(caption=lambda i: NASTY[i % 4]))
    write_html(layout, tests, Verdict({T: comparison()}), {T: "<i>predicted</i>"})
    reader = Reader(layout.report.read_text(encoding="utf-8"))
    names = [tag for tag, _ in reader.tags]
    assert not {"b", "i", "svg onload"} & set(names)
    assert not [1 for _, given in reader.tags if any(name.startswith("on") for name in given)]
    assert "<b>exp & co" in reader.text
    assert "<i>predicted</i>" in reader.text


@pytest.mark.parametrize("text", NASTY)
def test_json_in_a_script_element_cannot_end_it(text):
    block = script_json({"text": text, text: [1.5, None]})
    assert not set("<>&\u2028\u2029") & set(block)
    assert json.loads(block) == {"text": text, text: [1.5, None]}
    with pytest.raises(ValueError, match="Out of range float values are not JSON compliant"):
        script_json({"text": float("nan")})


def test_500_points_with_thumbnails_can_be_mailed(tmp_path):
    """Noise in colour is the largest picture there is; other pictures take less."""
    noise, tests = Pictures(side=SIDE, channels=(3,)), Pictures(side=SIDE)
    page = written(tmp_path, [comparison(n=500, k=250)], Data(noise, tests))
    size = len(page.encode())
    print(f"500 points with thumbnails of noise: {size / 1e6:.2f} MB")
    assert size < MOST_BYTES
    uris = re.findall(r"data:image/png;base64,[A-Za-z0-9+/=]+", page)
    assert len(uris) == len(set(uris)) == 501  # and that of the test
    assert len(Reader(page).data["points"]) == 500


def test_thumbnails_beyond_the_limit_are_left_out_and_counted():
    album = SampleCache(Pictures(), Pictures(), most_bytes=2000)
    size = len(thumbnail(Pictures().picture(1), ""))
    there = [album.of_training(i) for i in range(5)]
    assert album.left_out == 5 - 2000 // size > 0
    assert [len(one.pictures) for one in there] == [1] * (2000 // size) + [0] * album.left_out
    assert album.of_training(0) is there[0]


@pytest.mark.parametrize(
    ("shape", "size"), [((28, 28), (28, 28)), ((64, 3), (3, 64)), ((200, 100), (32, 64)), ((10, 300, 3), (64, 2))]
)
def test_thumbnails_keep_their_shape(shape, size):
    picture = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    uri = thumbnail(picture, "x")
    assert uri.startswith("data:image/png;base64,")
    image = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    assert image.size == size
    if max(shape[:2]) <= SIDE:
        np.testing.assert_array_equal(np.asarray(image), picture)


@pytest.mark.parametrize(
    ("picture", "said"),
    [
        (np.zeros((4, 4)), "float64 with shape (4, 4)"),
        (np.zeros((4, 4, 4), np.uint8), "uint8 with shape (4, 4, 4)"),
        (np.zeros((0, 4), np.uint8), "uint8 with shape (0, 4)"),
    ],
)
def test_what_is_no_picture_is_refused(tmp_path, picture, said):
    class Wrong(Pictures):
        def picture(self, id_):
            return picture if id_ == 17 else super().picture(id_)

    with pytest.raises(InputError) as caught:
        written(tmp_path, [comparison()], Data(Wrong()))
    assert str(caught.value) == (
        f"The picture of training sample 17 is {said}; the report shows uint8 images, [height, width] or [height, "
        "width, 3], that are not empty.\n"
        "  Let picture(id) of the data set give one of these, or None where there is none."
    )
    assert not list(tmp_path.rglob("*.html"))


def test_the_same_results_make_the_same_file(tmp_path):
    results = Results(Layout(tmp_path / "exp")).write()
    data, once = Data(Pictures()), []
    for _ in range(2):
        Reporter(results.layout, data, tmp_path / "logs").run([T], 6)
        once.append(results.layout.report.read_bytes())
    assert once[0] == once[1]


def test_the_vendored_library_is_the_one_it_says():
    vendor = Path(page_module.__file__).parent / "vendor"
    content = (vendor / "plotly-basic.min.js").read_bytes()
    assert hashlib.md5(content, usedforsecurity=False).hexdigest() in (vendor / "ATTRIBUTION.md").read_text()
    assert not re.search(rb"</script|<!--|\r", content)
