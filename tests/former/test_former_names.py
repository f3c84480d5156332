"""Every public name, config key and flag of release 0.1 goes on working, with one warning where it is now another."""

import importlib
import inspect
import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from ifloo.cli import former_settings
from ifloo.cli.lightning_cli import IflooCLI
from ifloo.errors import InputError
from ifloo.former_names import FormerNameWarning, former_names

HERE = Path(__file__).parent
PUBLIC = json.loads((HERE / "public_0.1.json").read_text())
NAMES = [(room, name) for room, names in PUBLIC["names"].items() for name in names]


def test_the_list_is_that_of_the_release():
    assert len(NAMES) == 185
    assert len(PUBLIC["flags"]) == 119


@pytest.mark.parametrize(("room", "name"), NAMES, ids=lambda x: x)
def test_a_public_name_is_still_there(room, name):
    module = importlib.import_module(room)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert getattr(module, name) is not None
    assert {w.category for w in caught} <= {FormerNameWarning}


def test_a_former_name_warns_once_and_gives_the_present_class():
    code = (
        "import warnings; warnings.simplefilter('always')\n"
        "import ifloo.attribution as room\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    assert room.CurvatureRoute is room.InfluenceFunction is room.CurvatureRoute\n"
        "print([str(w.message) for w in caught])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == ("['ifloo.attribution.CurvatureRoute is now ifloo.attribution.InfluenceFunction.']")


def test_a_misspelt_name_lists_the_nearest():
    room = importlib.import_module("ifloo.attribution")
    with pytest.raises(AttributeError) as caught:
        room.InfluenceFuntion  # ruff: ignore[useless-expression]  (the look-up is what fails)
    assert str(caught.value) == (
        "module 'ifloo.attribution' has no attribute 'InfluenceFuntion'. The nearest are: InfluenceFunction, "
        "InfluenceEngine, SelfInfluence."
    )


def test_a_name_like_no_other_is_refused_without_a_guess():
    with pytest.raises(AttributeError) as caught:
        former_names("ifloo.room", {}, ["Hessian"])("zzz")
    assert str(caught.value) == "module 'ifloo.room' has no attribute 'zzz'."


def test_every_argument_of_a_class_that_a_config_can_name_is_still_taken():
    missing = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FormerNameWarning)
        for path, arguments in PUBLIC["init_args"].items():
            room, _, name = path.rpartition(".")
            taken = set(inspect.signature(getattr(importlib.import_module(room), name)).parameters)
            if lost := set(arguments) - taken:
                missing[path] = lost
    assert not missing


class _Flags(Exception):  # ruff: ignore[error-suffix-on-exception-name]  (no error: it carries the flags out of the parser)
    pass


class _Listing(IflooCLI):
    """Stops where the parser is complete."""

    def parse_arguments(self, parser, args):
        (commands,) = (a for a in parser._actions if a.dest == "subcommand")
        options = {o for p in commands._name_parser_map.values() for a in p._actions for o in a.option_strings}
        raise _Flags(options)


def test_every_flag_is_still_taken(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ifloo", "fit"])
    monkeypatch.setattr(former_settings, "_warned", set(former_settings.SETTINGS))
    with pytest.raises(_Flags) as caught:
        _Listing()
    (present,) = caught.value.args
    assert {flag for flag in former_settings.current_flags(PUBLIC["flags"]) if flag not in present} == set()


def test_flags_get_their_present_name_in_every_form(monkeypatch):
    monkeypatch.setattr(former_settings, "_warned", set())
    former = (
        *("loo", "--attribution.further", "X", "--attribution.further=[]", "--attribution.further+=ifloo.X"),
        *("--attribution.further.rate=1", "--adapt.still", "true", "--attribution.furthermore", "further"),
    )
    with pytest.warns(FormerNameWarning) as caught:
        current = former_settings.current_flags(former)
    assert current == [
        *("loo", "--attribution.compare_with", "X", "--attribution.compare_with=[]"),
        *("--attribution.compare_with+=ifloo.X", "--attribution.compare_with.rate=1", "--adapt.skip_training", "true"),
        *("--attribution.furthermore", "further"),
    ]
    assert [str(w.message) for w in caught] == [
        "The setting attribution.further is now attribution.compare_with.",
        "The setting adapt.still is now adapt.skip_training.",
    ]


@pytest.mark.parametrize(
    "config",
    [
        {"attribution": {"compare_with": [1], "further": [2]}},
        {"attribution": {"further": [2], "compare_with": [1]}},
        {"fit": {"attribution": {"further": [2], "compare_with": [1]}}},
    ],
)
def test_a_former_and_a_present_key_in_one_config_are_refused(config, monkeypatch):
    monkeypatch.setattr(former_settings, "_warned", set(former_settings.SETTINGS))
    with pytest.raises(InputError, match=r"attribution\.further.*attribution\.compare_with"):
        former_settings.current_keys(config)


@pytest.mark.parametrize(
    "flags",
    [
        ("loo", "--attribution.further", "X", "--attribution.compare_with=[]"),
        ("loo", "--attribution.compare_with+=Y", "--attribution.further+=X"),
        ("loo", "--attribution.compare_with=Y", "--attribution.further.rate", "1"),
    ],
)
def test_a_former_and_a_present_flag_on_one_command_line_are_refused(flags, monkeypatch):
    monkeypatch.setattr(former_settings, "_warned", set(former_settings.SETTINGS))
    with pytest.raises(InputError, match=r"--attribution\.further.*--attribution\.compare_with"):
        former_settings.current_flags(flags)


def test_a_dotted_key_keeps_its_dots(monkeypatch):
    monkeypatch.setattr(former_settings, "_warned", set(former_settings.SETTINGS))
    config = {"attribution.further": [1], "model": {"layer.weight": 2}}
    assert former_settings.current_keys(config) == {"attribution.compare_with": [1], "model": {"layer.weight": 2}}
    assert former_settings.current_keys({"adapt.still": True}, "fit") == {"adapt.skip_training": True}
    with pytest.raises(InputError, match=r"attribution\.further.*attribution\.compare_with"):
        former_settings.current_keys({"attribution.further": [1], "attribution": {"compare_with": [2]}})


def test_keys_of_a_config_get_their_present_name_at_every_depth(monkeypatch):
    monkeypatch.setattr(former_settings, "_warned", set(former_settings.SETTINGS))
    assert former_settings.current_keys({"further": [1]}, "attribution") == {"compare_with": [1]}
    assert former_settings.current_keys(
        {"attribution": {"further": [1], "top_k": 2}, "fit": {"adapt": {"still": True}}, "model": {"further": 3}}
    ) == {
        "attribution": {"compare_with": [1], "top_k": 2},
        "fit": {"adapt": {"skip_training": True}},
        "model": {"further": 3},
    }
