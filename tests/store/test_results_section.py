"""Opening a section: settings that match are added to, others replaced only once something new is there."""

import re

import pytest

from ifloo.errors import InputError, WorkError
from ifloo.store import Manifest, Section


def section(folder, damping, paths=("scores.npz", "all")):
    manifest = Manifest.at(folder / "manifest.json")
    return Section(manifest, "influence", {"damping": damping}, {"top_k": 5}, [folder / name for name in paths])


@pytest.fixture
def results(tmp_path):
    with section(tmp_path, 0.0).opened(overwrite=False):
        (tmp_path / "scores.npz").write_text("old")
        (tmp_path / "all").mkdir()
        (tmp_path / "all" / "one.npy").write_text("old")
    return tmp_path


def contents(folder):
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_other_settings_are_refused_and_nothing_is_touched(results):
    before = contents(results)
    with pytest.raises(InputError, match=r"damping: stored 0\.0, asked 1\.0"), section(results, 1.0).opened(False):
        pytest.fail("the section must not open")
    assert contents(results) == before


def test_an_overwriting_run_replaces_what_was_there(results):
    with section(results, 1.0).opened(overwrite=True):
        assert not (results / "scores.npz").exists()
        (results / "scores.npz").write_text("new")
    assert contents(results).keys() == {"manifest.json", "scores.npz"}
    assert (results / "scores.npz").read_text() == "new"
    assert Manifest.at(results / "manifest.json").sections()["influence"]["compared"] == {"damping": 1.0}


def test_work_that_fails_before_its_first_result_leaves_the_old_ones(results):
    before = contents(results)
    with pytest.raises(WorkError, match="diverged"), section(results, 1.0).opened(overwrite=True):
        raise WorkError("diverged")
    assert contents(results) == before


def test_work_that_fails_after_its_first_result_keeps_that_one_under_its_own_settings(results):
    def work():
        with section(results, 1.0).opened(overwrite=True):
            (results / "scores.npz").write_text("new")
            raise WorkError("diverged")

    with pytest.raises(WorkError, match="diverged"):
        work()
    assert (results / "scores.npz").read_text() == "new"
    assert Manifest.at(results / "manifest.json").sections()["influence"]["compared"] == {"damping": 1.0}
    with section(results, 1.0).opened(overwrite=True):
        (results / "scores.npz").write_text("newer")
    assert contents(results).keys() == {"manifest.json", "scores.npz"}


def test_results_of_unknown_settings_are_refused(tmp_path):
    (tmp_path / "scores.npz").write_text("whose?")
    message = re.escape(
        f"{tmp_path}/scores.npz exists, but {tmp_path}/manifest.json does not record its settings.\n"
        "  Results of unknown settings are never added to. Move them away, give another --output_dir, or "
        "--overwrite to replace them."
    )
    with pytest.raises(InputError, match=message), section(tmp_path, 0.0).opened(overwrite=False):
        pytest.fail("the section must not open")


def test_a_second_run_in_the_same_folder_is_refused(results):
    message = re.escape(
        f"Another run is writing to {results}.\n  Wait for it to end, or give this one another --output_dir."
    )

    def second():
        with section(results, 0.0).opened(False):
            pytest.fail("the section must not open twice")

    with section(results, 0.0).opened(False), pytest.raises(InputError, match=message):
        second()
    with section(results, 0.0).opened(False):
        pass  # free again


def test_what_is_derived_from_replaced_results_goes_with_them(results):
    verdict = results / "verdict.json"
    verdict.write_text("on the old ones")
    opening = section(results, 1.0)
    opening = Section(opening.manifest, opening.name, opening.compared, opening.recorded, opening.paths, [verdict])
    with opening.opened(overwrite=True):
        (results / "scores.npz").write_text("new")
    assert not verdict.exists()
    verdict.write_text("on the new ones")
    with opening.opened(overwrite=False):
        pass
    assert verdict.read_text() == "on the new ones"


class Killed(BaseException):
    """Stands for Ctrl-C and SIGTERM, which are no errors."""


@pytest.mark.parametrize("failure", [WorkError, InputError, Killed])
@pytest.mark.parametrize("written", [False, True], ids=["nothing", "a file without content"])
def test_a_first_run_that_fails_before_its_first_result_refuses_no_other_settings(tmp_path, failure, written):
    Manifest.at(tmp_path / "manifest.json").record("fit", {"seed": 0}, {})

    def work():
        with section(tmp_path, 0.0).opened(overwrite=False):
            if written:
                (tmp_path / "scores.npz").touch()
            raise failure("raise damping")

    with pytest.raises(failure):
        work()
    assert list(Manifest.at(tmp_path / "manifest.json").sections()) == ["fit"]
    (tmp_path / "scores.npz").unlink(missing_ok=True)
    with section(tmp_path, 0.1).opened(overwrite=False):
        (tmp_path / "scores.npz").write_text("of the remedy")
    assert Manifest.at(tmp_path / "manifest.json").sections()["influence"]["compared"] == {"damping": 0.1}


def test_a_run_killed_at_once_leaves_settings_that_are_replaced(tmp_path):
    """SIGKILL runs no handler: the section stays, without results."""
    opening = section(tmp_path, 0.0)
    opening.manifest.record(opening.name, opening.compared, opening.recorded)
    (tmp_path / "all").mkdir()
    with section(tmp_path, 0.1).opened(overwrite=False):
        (tmp_path / "scores.npz").write_text("of the remedy")
    assert Manifest.at(tmp_path / "manifest.json").sections()["influence"]["compared"] == {"damping": 0.1}
    with pytest.raises(InputError, match=r"damping: stored 0\.1, asked 0\.0"), section(tmp_path, 0.0).opened(False):
        pytest.fail("results are there now")


def test_a_later_run_that_fails_keeps_the_settings_of_the_results(results):
    before = contents(results)

    def work():
        with section(results, 0.0).opened(overwrite=False):
            raise WorkError("the disk is full")

    with pytest.raises(WorkError):
        work()
    assert contents(results).keys() == before.keys()
    assert Manifest.at(results / "manifest.json").sections()["influence"]["compared"] == {"damping": 0.0}
