"""The page of former names lists every one, and what it says is so."""

import ast
import importlib
import inspect
import json
import textwrap
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import fields

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from ifloo.attribution import Certificate, Scores
from ifloo.curvature import GaussNewton, Hessian, LinearOperator, StochasticOperator
from ifloo.curvature.structure import DenseForm, Structure
from ifloo.errors import InputError
from ifloo.former_names import FormerNameWarning
from ifloo.models import LogisticRegression
from ifloo.stages import InfluencePredictor, InfluenceStage
from scripts.site.renames import MEMBERS, PAGE, USES, former_names, page
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


def attributes(of: str, written: Iterable[str]) -> set[str]:
    """First attributes that expressions read of a variable."""
    return {
        node.attr
        for text in written
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == of
    }


@pytest.mark.parametrize(
    ("variable", "made"),
    [("scores", Scores), ("operator", LinearOperator), ("operator", Hessian), ("predictor", InfluencePredictor)],
)
def test_present_uses_are_of_attributes_that_there_are(variable, made):
    assert attributes(variable, USES.values()) <= set(members(made))
    assert set(dir(made)) & attributes(variable, USES) <= {"engine"}


def test_every_part_of_a_certificate_and_of_a_structure_is_a_field_of_it():
    parts = {text.split(".")[2] for text in USES.values() if text.startswith("scores.certificate.")}
    assert parts <= {one.name for one in fields(Certificate)}
    assert {"cost", "dense", "kronecker"} == {one.name for one in fields(Structure)}
    assert {"build", "is_built", "streamed"} == {one.name for one in fields(DenseForm)}


def test_the_arguments_of_the_stage_have_the_order_on_the_page():
    (text,) = (now for now in USES.values() if now.startswith("InfluenceStage(module"))
    written = [argument.id for argument in ast.parse(text, mode="eval").body.args]
    assert written == list(inspect.signature(InfluenceStage).parameters)[: len(written)]


def test_the_curvatures_are_no_samplers_themselves():
    assert not issubclass(Hessian, StochasticOperator)
    assert not issubclass(GaussNewton, StochasticOperator)


def test_the_engine_is_there_once_it_is_built():
    data = TensorDataset(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).double(), torch.arange(6) % 3)
    model = LogisticRegression(num_features=4, num_classes=3)
    predictor = InfluencePredictor(model, DataLoader(data, batch_size=6))
    with pytest.raises(InputError, match="build_engine"):
        predictor.engine  # ruff: ignore[useless-expression]  (the look-up is what fails)
    assert predictor.build_engine() is predictor.engine
