"""Pages of artificial results, and a parser of their content."""

import json
from html.parser import HTMLParser

import numpy as np

from ifloo.report.html import write_html
from ifloo.store import Layout
from ifloo.verdict import Comparison, Verdict
from tests.verdict.results import T, stored

NASTY = (
    "</script><script>alert(1)</script>",
    "<!-- <script>",
    "--></style></title><img src=x onerror=alert(2)>",
    "\"'><svg onload=alert(3)>",
    "a\u2028b\u2029c",
    "{{ 7 * 7 }} {% raw %}",
    "lone \ud83d surrogate",
    "javascript:alert(4)",
)


class Pictures:
    """Data set of images with captions, of a given size; each id has another image."""

    def __init__(self, side=28, channels=(), caption=str):
        self.shape, self.caption = (side, side, *channels), caption

    def picture(self, id_):
        return np.random.default_rng(id_).integers(0, 256, self.shape, dtype=np.uint8)


class Words:
    """Data set of conversations; every third one has no image."""

    def __init__(self, texts=("请描述这张图片。", "What is this?")):
        self.texts = texts

    def question(self, id_):
        return self.texts[id_ % len(self.texts)]

    def answer(self, id_):
        return f"{self.texts[id_ % len(self.texts)]} {id_}"

    def pictures(self, id_):
        return [] if id_ % 3 == 0 else [np.full((20, 30, 3), id_ % 256, np.uint8)] * 2


class Data:
    def __init__(self, train, test=None):
        self.train_set, self.test_set = train, test or train


def comparison(n=60, t=T, slope=1.0, noise=0.1, k=20, **others):
    """Builds `n` removals whose actual changes are `slope` times the predicted ones, with relative noise `noise`."""
    rng = np.random.default_rng(t)
    scores = rng.standard_t(4, n) * 1e-2
    predicted = -scores
    actual = slope * predicted + noise * predicted.std() * rng.normal(size=n)
    top = np.isin(np.arange(n), np.argsort(-abs(scores))[:k])
    fields = {
        "stored": stored(scores, {}, test_id=t, train_ids=np.arange(n), residual=1e-11, error_bound=2e-9, status="CG"),
        "removal": "zero_weight",
        "ids": np.arange(n),
        "predicted": predicted,
        "actual": actual,
        "top": top,
        "control": ~top,
        "noise_floor": 1e-9,
        "worst_grad_norm": 1e-10,
        "flagged": 0,
    }
    return Comparison(**{**fields, **others})


def written(folder, compared, data=None, mislabels=None, objective=None, **others):
    """Writes a page and returns its text."""
    at = Layout(folder / "exp")
    verdict = Verdict({one.stored.test_id: one for one in compared}, mislabels, objective)
    path = write_html(at, data or Data(Pictures()), verdict, {}, **others)
    assert path == at.report == folder / "exp" / "report.html"
    return path.read_text(encoding="utf-8")


class Reader(HTMLParser):
    """Parser of a page's elements, texts and links, as a browser without scripts would see them."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.links, self.blocks, self.ids = [], [], [], []
        self.texts, self._hidden = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags.append((tag, tuple(sorted(name for name, _ in attributes))))
        self.links += [value for name, value in given.items() if name in ("src", "href", "action", "data", "srcset")]
        self.ids += [given["id"]] if "id" in given else []
        if tag in ("script", "style"):
            self._hidden = tag
            self.blocks.append([tag, given.get("type", ""), ""])

    def handle_endtag(self, tag):
        self._hidden = "" if tag == self._hidden else self._hidden

    def handle_data(self, data):
        if self._hidden:
            self.blocks[-1][2] += data
        else:
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    @property
    def scripts(self):
        return [text for tag, kind, text in self.blocks if tag == "script" and kind == ""]

    @property
    def data(self):
        (text,) = [text for _, kind, text in self.blocks if kind == "application/json"]
        return json.loads(text)
