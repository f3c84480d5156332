"""The page of former names lists every one, and what it says is so."""

import ast
import importlib
import inspect
import json
import textwrap
import warnings
from collections.abc import Iterator

import pytest

from ifloo.former_names import FormerNameWarning
from scripts.site.renames import MEMBERS, PAGE, former_names, page
from tests.conftest import CHECKOUT


def resolved(path: str) -> object:
    room, _, name = path.rpartition(".")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FormerNameWarning)
        return getattr(importlib.import_module(room), name)


def members(made: type) -> Iterator[str]:
    """Names that a class or a base of it defines: methods, fields, arguments of the constructor, attributes of self."""
    for one in made.__mro__:
        if not one.__module__.startswith("ifloo."):
            continue
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(one)))):
            if isinstance(node, ast.FunctionDef):
                yield node.name
                yield from (a.arg for a in node.args.args if node.name == "__init__")
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                yield node.target.id
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
                yield node.attr


def test_the_page_is_that_of_the_tables():
    assert PAGE.read_text() == page(), "run: python -m scripts.site.renames"


def test_every_public_name_of_the_release_that_is_public_no_more_is_on_the_page():
    released = json.loads((CHECKOUT / "tests" / "former" / "public_0.1.json").read_text())["names"]
    lost = {
        f"{room}.{name}"
        for room, names in released.items()
        for name in names
        if name not in getattr(importlib.import_module(room), "__all__", ())
    }
    assert lost == set(former_names())


@pytest.mark.parametrize(("former", "now"), former_names().items())
def test_a_former_name_leads_to_the_present_one(former, now):
    room, _, name = now.rpartition(".")
    assert name in importlib.import_module(room).__all__
    assert resolved(former) is resolved(now)


@pytest.mark.parametrize(("path", "names"), MEMBERS.items())
def test_members_have_their_present_name_and_not_the_former(path, names):
    room, _, name = path.rpartition(".")
    assert name in importlib.import_module(room).__all__
    present = set(members(resolved(path)))
    assert set(names.values()) <= present
    assert set(names) & present == set()
