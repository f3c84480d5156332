"""How the command starts: help and version at once, everything else by the same door."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ifloo import __version__
from ifloo.cli.help import HELP
from ifloo.cli.run import named_configs
from tests.cli.running import CHECKOUT, CONFIG, ifloo

HEAVY = ("torch", "lightning", "numpy", "scipy", "matplotlib", "jsonargparse", "torchmetrics", "tensorboard")


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=CHECKOUT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("flag", "text"), [("--help", HELP), ("-h", HELP), ("--version", f"ifloo {__version__}\n")])
def test_help_and_version_import_nothing_heavy(flag, text):
    code = (
        "import json, sys; from ifloo.__main__ import main; status = main(sys.argv[1:]); "
        "print(json.dumps([status, sorted({name.partition('.')[0] for name in sys.modules})]))"
    )
    said = python("-c", code, flag)
    assert said.stderr == ""
    shown, _, last = said.stdout.rstrip("\n").rpartition("\n")
    status, modules = json.loads(last)
    assert (status, shown + "\n") == (0, text)
    assert set(HEAVY).isdisjoint(modules)


def test_the_module_is_the_command():
    said = python("-m", "ifloo", "--version")
    assert (said.returncode, said.stdout, said.stderr) == (0, f"ifloo {__version__}\n", "")


def test_nothing_asked_for_shows_the_help_and_fails(tmp_path):
    said = ifloo(tmp_path)
    assert (said.code, said.out) == (2, HELP)


@pytest.mark.parametrize("command", ["influenc", "train"])
def test_an_unknown_command_is_an_error(tmp_path, command):
    said = ifloo(tmp_path, command)
    assert (said.code, said.out) == (2, "")
    assert said.err == (
        "tip: For details of accepted options run: ifloo --help\n"
        f"error: argument subcommand: invalid choice: '{command}' "
        "(choose from 'fit', 'influence', 'loo', 'report', 'pipeline', 'doctor')\n"
    )


@pytest.mark.parametrize("command", ["fit", "influence", "loo", "report", "pipeline", "doctor"])
def test_the_help_of_a_command_shows_every_group(tmp_path, command):
    said = ifloo(tmp_path, command, "--help")
    assert said.code == 0
    for setting in (
        "--experiment",
        "--checkpoint",
        "--output_dir",
        "--overwrite",
        "--model",
        "--data",
        "--trainer.max_epochs",
        "--attribution.test_ids",
        "--attribution.damping",
        "--refit.removal {drop,zero_weight}",
        "--finish.tolerance",
    ):
        assert setting in said.out


def test_a_config_that_comes_with_ifloo_is_known_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mnist").mkdir()  # where the images go, by the same name
    apart, joined = named_configs(["fit", "--config", "mnist"])[2], named_configs(["fit", "--config=mnist"])[1]
    for word in (apart, joined.removeprefix("--config=")):
        assert Path(word).read_text() == CONFIG.read_text()
    said = ifloo(tmp_path, "fit", "--config", "mnst")
    assert (said.code, said.out) == (2, "")
    assert said.err == (
        "ifloo: error: --config mnst: there is no such file, and the configs that come with ifloo are mnist, "
        "multimodal, multimodal_large.\n  Give the path of a YAML file, or one of these names.\n"
    )
