"""Methods as a stage: each into its folder, kept where it is there, never mixed."""

import dataclasses
import re

import numpy as np
import pytest
import torch

from ifloo.attribution import GradientCosine, GradientDot, MethodScores, RandomScores, TracIn, Unrolled
from ifloo.errors import InputError
from ifloo.progress import no_progress
from ifloo.stages import AttributionSettings
from ifloo.stages.scores.other_methods import MethodRun
from ifloo.store import Layout, Manifest, RunFolder, influences
from tests.stages.scores.test_influence_run import N, digits, run

COMPARED = {"model": "LogisticRegression", "weights": "abc"}


def stage(folder, *methods, **changes):
    """Of methods that need no recorded run, on an untrained model."""
    one = run(folder, test_ids=[0])
    settings = AttributionSettings(compare_with=list(methods), batch_size=7)
    made = MethodRun(one.module, digits(), settings, Layout(folder), torch.device("cpu"), None)
    return dataclasses.replace(made, **changes)


def stored(folder, name, t):
    return influences.load(Layout(folder).method_scores(name, t))


def test_each_method_goes_to_its_folder(tmp_path):
    by = stage(tmp_path, GradientDot(), RandomScores(3))
    by.further([0, 4], COMPARED, overwrite=False)
    names = {"gradient_dot": GradientDot(), "random": RandomScores(3)}
    assert sorted(p.name for p in (tmp_path / "methods").iterdir()) == sorted(names)
    queries = digits().test_batch([0, 4])
    for name, method in names.items():
        expected = method.scores(by.trained, queries)
        for k, t in enumerate((0, 4)):
            found = stored(tmp_path, name, t)
            np.testing.assert_array_equal(found.scores, expected.value[k].float().numpy())
            assert found.train_ids.tolist() == list(range(N))
            assert found.score_mean == pytest.approx(float(expected.value[k].mean()), rel=1e-12, abs=1e-18)
            assert (found.test_id, found.method, found.status, found.residual) == (t, name, "NO_SOLVE", None)
    sections = Manifest.at(tmp_path / "manifest.json").sections()
    assert sorted(sections) == ["methods/gradient_dot", "methods/random"]
    assert sections["methods/random"]["compared"] == COMPARED | {"method": {"class": "RandomScores", "seed": 3}}


class OfTheFirstRelease(GradientDot):
    """A method as release 0.1 had them: one residual of each query, steps and status of all."""

    name = "of_the_first_release"

    def scores(self, trained, queries, tick=no_progress):
        found = super().scores(trained, queries, tick)
        residual = torch.full((len(found.value),), 1e-3, dtype=torch.float64)
        return MethodScores(found.value, found.train_ids, residual, 7, "converged")


def test_a_method_of_the_first_release_is_stored(tmp_path):
    by = stage(tmp_path, OfTheFirstRelease())
    by.further([0, 4], COMPARED, overwrite=False)
    expected = GradientDot().scores(by.trained, digits().test_batch([0, 4])).value
    for k, t in enumerate((0, 4)):
        found = stored(tmp_path, "of_the_first_release", t)
        np.testing.assert_array_equal(found.scores, expected[k].float().numpy())
        assert (found.test_id, found.residual, found.steps, found.status) == (t, 1e-3, 7, "CONVERGED")


def test_what_is_there_is_kept_and_others_join(tmp_path):
    stage(tmp_path, GradientDot()).further([0], COMPARED, overwrite=False)
    path = Layout(tmp_path).method_scores("gradient_dot", 0)
    before = path.stat().st_mtime_ns
    stage(tmp_path, GradientDot(), GradientCosine()).further([0, 1], COMPARED, overwrite=False)
    assert path.stat().st_mtime_ns == before
    assert set(Layout(tmp_path).existing_methods(1)) == {"gradient_dot", "gradient_cosine"}


def refusal(folder, *lines):
    return (
        f"{folder}/manifest.json: the methods/random results there were made with other settings.\n"
        + "".join(f"  {line}\n" for line in lines)
        + "  Results of different settings are never mixed. Give another --output_dir to keep both, "
        "or --overwrite to replace the stored ones."
    )


def test_other_settings_are_refused_and_replaced_on_demand(tmp_path):
    stage(tmp_path, RandomScores(0)).further([0, 1], COMPARED, overwrite=False)
    before = stored(tmp_path, "random", 0).scores
    other = COMPARED | {"weights": "def"}
    with pytest.raises(InputError) as caught:
        stage(tmp_path, RandomScores(1)).further([0], other, overwrite=False)
    assert str(caught.value) == refusal(
        tmp_path, 'weights: stored "abc", asked "def"', "method.seed: stored 0, asked 1"
    )
    np.testing.assert_array_equal(stored(tmp_path, "random", 0).scores, before)
    stage(tmp_path, RandomScores(1)).further([0], other, overwrite=True)
    assert not np.array_equal(stored(tmp_path, "random", 0).scores, before)
    # The manifest speaks of the whole folder: the other test's scores, of the old settings, are gone with the first.
    assert not Layout(tmp_path).method_scores("random", 1).exists()


def test_scores_of_another_run_in_the_folder_are_refused(tmp_path):
    stage(tmp_path / "other", RandomScores(1)).further([1], COMPARED, overwrite=False)
    stage(tmp_path, RandomScores(0)).further([0], COMPARED, overwrite=False)
    path = Layout(tmp_path).method_scores("random", 1)
    path.write_bytes(Layout(tmp_path / "other").method_scores("random", 1).read_bytes())
    with pytest.raises(InputError) as caught:
        stage(tmp_path, RandomScores(0)).further([0, 1], COMPARED, overwrite=False)
    assert str(caught.value) == (
        f"{path} was made with other settings than {tmp_path}/manifest.json says.\n"
        "  Give another --output_dir to keep it, or --overwrite to replace it."
    )


@pytest.mark.parametrize("method", [TracIn(), Unrolled()])
def test_a_method_that_needs_a_run_and_finds_none(tmp_path, method):
    by = stage(tmp_path, method, recorded=RunFolder(tmp_path / "base.run"))
    with pytest.raises(InputError, match=rf"^There is no recorded run at {re.escape(str(tmp_path))}/base\.run: "):
        by.further([0], COMPARED, overwrite=False)
    assert Layout(tmp_path).existing_methods(0) == {}


def test_methods_that_need_no_run_do_not_look_for_one(tmp_path):
    stage(tmp_path, GradientDot(), recorded=RunFolder(tmp_path / "base.run")).further([0], COMPARED, overwrite=False)
    assert set(Layout(tmp_path).existing_methods(0)) == {"gradient_dot"}


def test_another_precision_is_that_of_a_copy(tmp_path):
    """Refits start from the module that was given: its weights have not been through 32 bits."""
    by = stage(tmp_path)
    settings = dataclasses.replace(by.settings, dtype="float32")
    torch.nn.init.uniform_(next(by.module.parameters()))  # 53 random bits, of which 24 would be left
    before = {name: x.clone() for name, x in by.module.state_dict().items()}
    narrow = dataclasses.replace(by, settings=settings).trained
    assert narrow.theta.dtype == torch.float32
    after = by.module.state_dict()
    assert {x.dtype for x in after.values()} == {torch.float64}
    assert all(torch.equal(x, before[name]) for name, x in after.items())
    whole = torch.cat([x.flatten() for x in before.values()])
    assert torch.equal(narrow.theta, whole.float())
    assert not torch.equal(narrow.theta.double(), whole)


# Settings.


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"test_ids": "all"}, "test_ids all, corrected False"),
        ({"test_ids": [0, 8], "corrected": True}, "test_ids [0, 8], corrected True"),
    ],
)
def test_a_method_scores_listed_tests_without_corrections(settings, said):
    with pytest.raises(InputError) as caught:
        AttributionSettings(method=Unrolled(), **settings)
    assert str(caught.value) == (
        f"attribution.method unrolled scores listed tests, without a correction for leverage; got {said}.\n"
        "  Give test_ids=[0, 8], or leave attribution.method out."
    )


@pytest.mark.parametrize(
    ("method", "further"), [(None, [RandomScores(0), RandomScores(1)]), (RandomScores(), [TracIn(), RandomScores(1)])]
)
def test_one_name_twice(method, further):
    with pytest.raises(InputError) as caught:
        AttributionSettings(method=method, compare_with=further)
    assert str(caught.value) == (
        "attribution.method and attribution.compare_with hold random twice.\n"
        "  Each needs a name of its own: leave one out, or give another label."
    )


def test_whether_a_fit_must_be_recorded():
    assert not AttributionSettings().needs_run
    assert not AttributionSettings(compare_with=[GradientDot(), RandomScores()]).needs_run
    assert AttributionSettings(compare_with=[GradientDot(), TracIn()]).needs_run
    assert AttributionSettings(method=Unrolled()).needs_run
