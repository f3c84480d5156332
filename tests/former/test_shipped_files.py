"""Configs and scripts use the present names, so that none of them warns its users."""

import importlib
import re
import warnings

import pytest
import yaml

from ifloo.cli.former_settings import SETTINGS, current_keys
from ifloo.former_names import FormerNameWarning
from tests.conftest import CHECKOUT

CONFIGS = [*sorted((CHECKOUT / "configs").glob("*.yaml")), *sorted((CHECKOUT / "scripts").rglob("examples/*.yaml"))]
SCRIPTS = [path for path in sorted((CHECKOUT / "scripts").rglob("*.py")) if path.name != "renames.py"]  # lists them
CLASS_PATH = re.compile(r"(?:=|\"|class_path: )(ifloo(?:\.\w+)*)\.([A-Z]\w*)")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_keys_are_present_names(path):
    config = yaml.safe_load(path.read_text())
    assert current_keys(config) == config


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_flags_are_present_names(path):
    assert not [former for former in SETTINGS if f"--{former}" in path.read_text()]


@pytest.mark.parametrize("path", [*CONFIGS, *SCRIPTS], ids=lambda path: path.name)
def test_classes_are_present_names(path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", FormerNameWarning)
        for room, name in CLASS_PATH.findall(path.read_text()):
            getattr(importlib.import_module(room), name)


def test_class_paths_are_seen_in_every_form():
    text = "class_path: ifloo.a.B\n['--x=ifloo.a.b.C', \"ifloo.D\"]"
    assert CLASS_PATH.findall(text) == [("ifloo.a", "B"), ("ifloo.a.b", "C"), ("ifloo", "D")]
