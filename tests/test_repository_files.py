"""Files that the host of the repository reads: the citation and the forms for issues."""

from pathlib import Path

import pytest
import yaml

import ifloo
from tests.conftest import CHECKOUT

FORMS = CHECKOUT / ".github" / "ISSUE_TEMPLATE"


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((CHECKOUT / "CITATION.cff").read_text())
    # Keys that the format requires: citation-file-format 1.2.0.
    assert set(citation) >= {"cff-version", "message", "title", "authors"}
    assert (citation["version"], citation["license"]) == (ifloo.__version__, "Apache-2.0")


def test_there_is_a_form_for_each_kind_of_issue():
    assert sorted(path.stem for path in FORMS.iterdir()) == ["crash", "question", "wrong_number"]


@pytest.mark.parametrize("path", sorted(FORMS.glob("*.yml")), ids=lambda path: path.stem)
def test_a_form_asks_what_is_needed(path: Path):
    form = yaml.safe_load(path.read_text())
    assert set(form) == {"name", "description", "labels", "body"}
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    names = [field["id"] for field in fields]
    assert len(set(names)) == len(names)
    assert all(field["attributes"]["label"] for field in fields)
    assert any(field.get("validations", {}).get("required") for field in fields)


def test_a_wrong_number_comes_with_the_files_that_repeat_it():
    form = yaml.safe_load((FORMS / "wrong_number.yml").read_text())
    required = {field["id"] for field in form["body"] if field.get("validations", {}).get("required")}
    assert required == {"expected", "command", "manifest"}
