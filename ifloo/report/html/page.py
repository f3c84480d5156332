"""Writer of the page: renders the template with all data into one file."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from ifloo.data.protocol import ConversationSet, SampleSets
from ifloo.report.html.certificate import columns
from ifloo.report.html.headline import answer
from ifloo.report.html.numbers import (
    compact,
    correlation,
    correlations,
    counted,
    interval,
    percent,
    ratio,
    signed,
)
from ifloo.report.html.points import points
from ifloo.report.html.provenance import provenance
from ifloo.report.html.samples import SampleCache
from ifloo.report.html.views import groups_tables, methods_tables, view
from ifloo.store import JSON, WEIGHTS, Layout, Manifest, StoredInfluences, replacing
from ifloo.verdict import Verdict
from ifloo.verdict.judgement import FEW_REFITS
from ifloo.verdict.label_errors import NAMES
from ifloo.verdict.small_steps import REMOVED_PEARSON, REMOVED_SLOPES

HERE = Path(__file__).parent
# Characters that could end a script element, or a line within a string of older JavaScript.
_UNSAFE = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def write_html(
    layout: Layout,
    datamodule: SampleSets,
    verdict: Verdict,
    outcomes: Mapping[int, str],
    unverified: Mapping[int, tuple[StoredInfluences, int]] | None = None,
) -> Path:
    """Writes the report of an experiment atomically as one HTML file.

    Args:
        layout: Paths of the experiment's files.
        datamodule: Training and test set, with `picture(id)` and `caption(id)` or as a `ConversationSet`.
        verdict: Verdict on the tests with refits.
        outcomes: Outcome of the model by test id.
        unverified: Scores and number of refits of each test that has too few refits for a comparison, by test id.

    Returns:
        Path of the file.

    Raises:
        InputError: If the page cannot show an image of the data set, or the manifest cannot be read.
        WorkError: If the file cannot be written; an existing file is then unchanged.
    """
    facts = _facts(layout, datamodule, verdict, outcomes, unverified or {})
    page = _template().render(**facts)
    with replacing(layout.report) as file:
        # A lone surrogate (from a file name that is not UTF-8) becomes \udcXX, which is also how JSON writes it.
        file.write(page.encode("utf-8", errors="backslashreplace"))
    return layout.report


def _facts(
    layout: Layout,
    datamodule: SampleSets,
    verdict: Verdict,
    outcomes: Mapping[int, str],
    unverified: Mapping[int, tuple[StoredInfluences, int]],
) -> dict[str, object]:
    """Returns all variables of the template."""
    album = SampleCache(datamodule.train_set, datamodule.test_set)
    conversation = isinstance(datamodule.test_set, ConversationSet)
    tests = {t: (one.stored, one) for t, one in verdict.items()} | {
        t: (one, None) for t, (one, _) in unverified.items()
    }
    views = [
        view(stored, one, album, outcomes.get(t, ""), verdict.objective) for t, (stored, one) in sorted(tests.items())
    ]
    drawn = points(verdict, album)
    scripts = [script_text(HERE / "vendor" / "plotly-basic.min.js"), script_text(HERE / "report.js")]
    return {
        "experiment": layout.root.name,
        "answer": answer(verdict, {t: refits for t, (_, refits) in unverified.items()}),
        "views": views,
        "conversation": conversation,
        "certificate_columns": columns([one.certificate for one in views]),
        "groups": groups_tables(verdict),
        "methods": methods_tables(verdict),
        "mislabels": verdict.mislabels,
        "rankings": NAMES,
        "provenance": provenance(Manifest.at(layout.manifest).sections()),
        "definitions": verdict.definitions,
        "bounds": {"pearson": REMOVED_PEARSON, "slopes": REMOVED_SLOPES, "few": FEW_REFITS, "weights": WEIGHTS},
        "left_out": album.left_out,
        "style": Markup((HERE / "report.css").read_text(encoding="utf-8")),
        "plotly": Markup(scripts[0]),
        "script": Markup(scripts[1]),
        "hashes": _hashes(scripts),
        "data": Markup(script_json({**drawn, "samples": album.to_json(), "conversation": conversation})),
    }


def script_json(value: JSON) -> str:
    """Returns a value as JSON that is safe inside a script element, whatever text it contains.

    Raises:
        ValueError: If a number in it is not finite.
    """
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).translate(_UNSAFE)


@cache
def script_text(path: Path) -> str:
    """Reads a script of the package with line ends normalised to line feeds, as a browser does."""
    return path.read_text(encoding="utf-8")


def _hashes(scripts: Iterable[str]) -> str:
    """Returns the hashes of the page's scripts for its security policy, which allows no other script."""
    digests = (hashlib.sha256(text.encode("utf-8")).digest() for text in scripts)
    return " ".join(f"'sha256-{base64.b64encode(digest).decode('ascii')}'" for digest in digests)


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    forms = (compact, signed, correlation, correlations, ratio, percent, interval, counted)
    environment.globals |= {form.__name__: form for form in forms}
    return environment.get_template("report.html.j2")
