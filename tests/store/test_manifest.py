import json
import logging
import os
import subprocess
import time
from datetime import datetime, timedelta

import pytest

import ifloo
from ifloo.errors import InputError, WorkError
from ifloo.store import Manifest, environment, manifest

SETTINGS = {"removal": "drop", "data": {"limit": 5000, "normalize": False}, "shape": (2, 3), "damping": 0.0}


@pytest.fixture
def stored(tmp_path):
    found = Manifest.at(tmp_path / "new" / "manifest.json")
    found.record("loo", SETTINGS, {"test_ids": [0, 8]})
    return found


def test_same_settings_may_be_added_to(stored):
    stored.check("loo", SETTINGS)
    stored.check("loo", {**SETTINGS, "shape": [2, 3], "damping": 0})
    stored.check("influence", {"removal": "zero_weight"})
    Manifest.at(stored.path.parent / "none.json").check("loo", {})


def test_each_difference_is_shown(stored):
    asked = {"removal": "zero_weight", "data": {"limit": 55000, "normalize": False}, "damping": 0.0, "init": {}}
    with pytest.raises(InputError) as caught:
        stored.check("loo", asked)
    assert str(caught.value) == (
        f"{stored.path}: the loo results there were made with other settings.\n"
        '  removal: stored "drop", asked "zero_weight"\n'
        "  data.limit: stored 5000, asked 55000\n"
        "  shape: stored [2, 3], asked nothing\n"
        "  init: stored nothing, asked {}\n"
        "  Results of different settings are never mixed. Give another --output_dir to keep both, "
        "or --overwrite to replace the stored ones."
    )
    stored.check("loo", asked, overwrite=True)
    assert stored.sections()["loo"]["compared"]["removal"] == "drop"


def test_sections_do_not_disturb_each_other(stored):
    loo = stored.sections()["loo"]
    stored.record("influence", {"solver": "CG"}, {})
    assert stored.sections()["loo"] == loo
    stored.record("loo", {"removal": "zero_weight"}, {"test_ids": []})
    assert stored.sections()["loo"]["compared"] == {"removal": "zero_weight"}
    assert stored.sections()["influence"]["compared"] == {"solver": "CG"}
    assert list(stored.sections()) == ["loo", "influence"]
    assert set(loo["recorded"]) == {"versions", "platform", "time", "git_revision", "test_ids"}


def test_samples_join_a_section_and_stay_what_they_were(tmp_path):
    manifest = Manifest.at(tmp_path / "manifest.json")
    first = manifest.joined("loo", {"seed": 0}, {"0": "a"}, {})
    assert first == {"seed": 0, "queries": {"0": "a"}}
    assert manifest.sections() == {}  # recorded by whoever makes the results
    manifest.record("loo", first, {})
    together = manifest.joined("loo", {"seed": 0}, {"8": "b"}, {"test_ids": [8]})
    assert together == {"seed": 0, "queries": {"0": "a", "8": "b"}}
    assert manifest.sections()["loo"]["compared"] == together
    before = manifest.path.read_bytes()
    assert manifest.joined("loo", {"seed": 0}, {"8": "b"}, {"test_ids": [0]}) == together
    for compared, queries, said in (
        ({"seed": 0}, {"8": "c", "9": "d"}, 'queries.8: stored "b", asked "c"'),
        ({"seed": 1}, {"9": "d"}, "seed: stored 0, asked 1"),
    ):
        with pytest.raises(InputError) as caught:
            manifest.joined("loo", compared, queries, {})
        assert str(caught.value) == (
            f"{manifest.path}: the loo results there were made with other settings.\n  {said}\n"
            "  Results of different settings are never mixed. Give another --output_dir to keep both, "
            "or --overwrite to replace the stored ones."
        )
        assert manifest.joined("loo", compared, queries, {}, overwrite=True) == compared | {"queries": queries}
    assert manifest.path.read_bytes() == before


def test_results_without_contents_go_on_without(stored):
    compared = stored.sections()["loo"]["compared"]
    assert stored.joined("loo", compared, {"0": "a"}, {}) == compared


def test_a_failed_write_keeps_the_old_manifest(stored, monkeypatch):
    before = stored.path.read_bytes()
    with pytest.raises(WorkError, match=r"manifest.json was not written: loo.compared.damping is nan"):
        stored.record("loo", {"damping": float("nan")}, {})
    assert stored.path.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "not JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1))"),
        ("[]", "not a JSON object"),
        ('{"loo": {"recorded": {}}}', "section loo has no settings to compare"),
    ],
)
def test_a_file_that_is_no_manifest(stored, content, reason):
    stored.path.write_text(content)
    for use in (lambda: stored.check("loo", SETTINGS), lambda: stored.record("loo", {}, {})):
        with pytest.raises(InputError) as caught:
            use()
        assert str(caught.value) == (
            f"{stored.path} is no manifest of ifloo: {reason}.\n"
            "  It says what the results beside it were made with. Restore it, or move the folder away and run again."
        )
    assert stored.path.read_text() == content


def test_a_manifest_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError) as caught:
        Manifest.at(tmp_path).sections()
    assert str(caught.value) == (
        f"{tmp_path} is no manifest of ifloo: Is a directory.\n"
        "  It says what the results beside it were made with. Restore it, or move the folder away and run again."
    )


def test_other_versions_are_one_warning(stored, caplog):
    content = json.loads(stored.path.read_text())
    content["loo"]["recorded"]["versions"] |= {"torch": "1.0", "ifloo": "0.0.1"}
    stored.path.write_text(json.dumps(content))
    now = environment()["versions"]
    with caplog.at_level(logging.WARNING):
        stored.check("loo", SETTINGS)
        stored.check("loo", {}, overwrite=True)
    assert caplog.messages == [
        f"{stored.path}: the loo results were made with other versions: "
        f"ifloo 0.0.1 -> {ifloo.__version__}, torch 1.0 -> {now['torch']}."
    ]


def test_environment_is_quick_and_complete():
    start = time.perf_counter()
    found = environment()
    assert time.perf_counter() - start < 0.5
    assert set(found["versions"]) == {"ifloo", "torch", "lightning", "numpy", "python"}
    assert datetime.fromisoformat(found["time"]).utcoffset() == timedelta(0)
    json.dumps(found, allow_nan=False)


def git(folder, *words):
    identity = {
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@b",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@b",
    }
    safe = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    found = subprocess.run(
        ["git", *words], cwd=folder, env={**os.environ, **identity, **safe}, check=True, capture_output=True, text=True
    )
    return found.stdout.strip()


def test_git_revision_is_what_git_says(tmp_path):
    """Branch, packed branch, detached head, linked worktree; no checkout and no commit give None."""
    checkout, worktree = tmp_path / "checkout", tmp_path / "worktree"
    checkout.mkdir()
    assert manifest._git_revision(checkout) is None
    try:
        git(checkout, "init", "-q")
    except FileNotFoundError:
        pytest.skip("git is not installed")
    assert manifest._git_revision(checkout) is None
    git(checkout, "commit", "-q", "--allow-empty", "-m", "one")
    assert manifest._git_revision(checkout) == git(checkout, "rev-parse", "HEAD")
    git(checkout, "pack-refs", "--all")
    assert manifest._git_revision(checkout) == git(checkout, "rev-parse", "HEAD")
    git(checkout, "worktree", "add", "-q", "-b", "side/branch", str(worktree))
    git(worktree, "commit", "-q", "--allow-empty", "-m", "two")
    assert manifest._git_revision(worktree) == git(worktree, "rev-parse", "HEAD")
    git(worktree, "checkout", "-q", "--detach")
    assert manifest._git_revision(worktree) == git(worktree, "rev-parse", "HEAD")
