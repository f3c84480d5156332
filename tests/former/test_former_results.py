"""Configs, checkpoints, recorded runs and output folders of release 0.1 are read, and what is done there is kept."""

import shutil
import tarfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from ifloo.cli import former_settings
from ifloo.former_names import FormerNameWarning
from tests.cli.running import done, ifloo

ARCHIVE = Path(__file__).parent / "results_0.1.tar.xz"
DERIVED = ("figs", "report.html", "manifest.json", "verdict.json")  # drawn or noted again by each run


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """Both experiments as release 0.1 left them: logistic regression, and a recorded run of the language model."""
    folder = tmp_path_factory.mktemp("release")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(autouse=True)
def _not_warned_yet(monkeypatch):
    monkeypatch.setattr(former_settings, "_warned", set())


@contextmanager
def _former_names():
    """Takes the warnings of former names, of which the key of the configs is one."""
    with pytest.warns(FormerNameWarning) as caught:
        yield
    assert "The setting attribution.further is now attribution.compare_with." in {str(w.message) for w in caught}


@pytest.fixture
def results(unpacked, tmp_path):
    return Path(shutil.copytree(unpacked, tmp_path / "copy"))


def _numbers(folder):
    """Content of every file that holds results, the base model and the recorded run."""
    files = (p for top in ("models", "outputs") for p in (folder / top).rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in files if not set(p.parts) & set(DERIVED)}


@pytest.mark.parametrize("config", ["digits.yaml", "text.yaml"])
def test_a_finished_pipeline_computes_nothing_again(results, config, monkeypatch):
    for stage in ("fit_base", "run"):
        monkeypatch.setattr(f"{COMPUTES[stage]}", _never)
    before = _numbers(results)
    with _former_names():
        done(ifloo(results, "pipeline", f"--config={config}"))
    assert _numbers(results) == before


COMPUTES = {
    "fit_base": "ifloo.cli.commands.fit_base",
    "run": "ifloo.refit.execution.runner.InProcess.run",
}


def _never(*_, **__):
    raise AssertionError("a result that is there was computed again")


def test_what_is_missing_is_added_to_what_is_there(results):
    losses = results / "outputs" / "digits" / "loo_losses_test_0.jsonl"
    lines = losses.read_bytes().splitlines(keepends=True)
    losses.write_bytes(b"".join(lines[:-1]))
    before = _numbers(results)
    with _former_names():
        done(ifloo(results, "pipeline", "--config=digits.yaml"))
    after = _numbers(results)
    name = str(losses.relative_to(results))
    assert after.pop(name).startswith(before.pop(name))
    assert len(losses.read_bytes().splitlines()) == len(lines)
    assert after == before


def test_scores_of_all_tests_go_on(results):
    before = _numbers(results)
    forms = ("--attribution.topk_only=true", "--attribution.corrected=false", "--attribution.self_influence=false")
    with _former_names():
        ended = done(ifloo(results, "influence", "--config=digits.yaml", "--attribution.test_ids=all", *forms))
    assert "0 tests scored now, 1000 in all" in ended.out
    assert _numbers(results) == before


def test_an_old_class_name_in_a_config_is_taken_and_a_misspelt_new_one_lists_the_nearest(results):
    wrong = results / "wrong.yaml"
    wrong.write_text((results / "digits.yaml").read_text().replace("CurvatureRoute", "InfluenceFuntion"))
    with _former_names():
        ended = ifloo(results, "influence", f"--config={wrong}")
    assert ended.code == 2
    assert "InfluenceFunction" in ended.err
