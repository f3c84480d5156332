"""Removals with the leverage counted in, through the commands: files, verdict, resume, replacement, refusal."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from ifloo.store import Layout, removals
from tests.cli.running import contents, done, small
from tests.cli.test_pipeline import read_json, results

CORRECTED = "--attribution.corrected=true"


@pytest.fixture(scope="module")
def predicted(experiment, tmp_path_factory) -> Path:
    """The experiment, and the corrected removals of its tests. Do not write here."""
    folder = Path(shutil.copytree(experiment, tmp_path_factory.mktemp("predicted") / "run"))
    done(small(folder, "influence", CORRECTED))
    return folder


@pytest.fixture
def corrected(predicted, tmp_path) -> Path:
    return Path(shutil.copytree(predicted, tmp_path / "corrected"))


def test_the_verdict_holds_it_beside_the_scores(corrected):
    said = done(small(corrected, "report", CORRECTED)).out
    assert said.count("\n  leverage-corrected, all ") == 3  # of each test, and of both together
    for entry in read_json(results(corrected) / "verdict.json")["tests"].values():
        method = entry["methods"]["leverage_corrected"]
        assert method["n_refits"] == entry["n_refits"]
        # First order against second: at 100 samples the leverages are large, and counting them in is worth a lot.
        assert method["median_rel_err"] < 0.5 * entry["median_rel_err"]
        assert abs(method["slope"] - 1) < abs(entry["slope"] - 1)


def test_what_is_there_is_kept_and_more_ids_join(corrected):
    path = Layout(results(corrected)).removals(8)
    before = removals.load(path)
    assert before.residual <= 1e-10
    assert before.damping == 0
    done(small(corrected, "influence", CORRECTED, "--refit.random=7"))
    after = removals.load(path)
    assert set(before.ids.tolist()) < set(after.ids.tolist())
    np.testing.assert_array_equal(after.effects[: len(before.ids)], before.effects)


def test_they_go_with_the_scores_they_belong_to(corrected):
    done(small(corrected, "influence", "--attribution.damping=0.5", "--overwrite"))
    assert not Layout(results(corrected)).existing_removals()


def test_a_curvature_without_leverages_is_refused_before_any_work(copied):
    before = contents(results(copied))
    refused = small(copied, "influence", CORRECTED, "--attribution.curvature=ifloo.curvature.Hessian", "--overwrite")
    assert refused.code == 2
    assert refused.err.endswith(
        "ifloo: error: attribution.corrected counts in the leverage of the removed sample, which a linear head has; "
        "this curvature is Hessian.\n  Leave it out, or attribute one linear layer (attribution.parameters) with "
        "solver Auto or curvature LinearHead.\n"
    )
    assert contents(results(copied)) == before


def test_forms_of_all_tests_are_for_all_tests(copied):
    refused = small(copied, "influence", "--attribution.matrix=true", "--attribution.test_ids=[0]")
    assert refused.code == 2
    assert "give --attribution.test_ids all with them" in refused.err
