"""Scores are of the weights that a fit ends with, and of the data that it was trained on."""

import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging

from ifloo.attribution import GradientDot
from ifloo.stages import InfluenceCallback
from ifloo.store import influences
from tests.gallery.dense import Dense, off, singles
from tests.practice import moments
from tests.practice.base import IN_FILES, Project, Rows

DOTS = "--attribution.method.class_path=ifloo.attribution.GradientDot"


def averages():
    return {"EMA": EMAWeightAveraging(decay=0.99), "SWA": StochasticWeightAveraging(swa_lrs=0.1)}


@pytest.mark.parametrize("kind", ["EMA", "SWA"])
@pytest.mark.parametrize("order", ["before", "after"])
def test_scores_are_of_the_averaged_weights_in_either_order_of_callbacks(kind, order, tmp_path):
    scorer = InfluenceCallback(Rows().val_dataloader(), num_queries=1, method=GradientDot(), output_dir=tmp_path / "o")
    callbacks = [scorer, averages()[kind]]
    project = Project.trained(
        tmp_path,
        moments.Descent,
        moments.SmallBatches,
        max_epochs=4,
        callbacks=callbacks if order == "before" else callbacks[::-1],
    )
    stored = influences.load(next((tmp_path / "o").rglob("influences_test_0.npz")))
    assert off(torch.as_tensor(stored.scores)[None], project.dense().dots(project.tests())) <= IN_FILES


def test_a_split_by_the_random_state_is_refused_with_both_remedies(tmp_path):
    project = Project.trained(tmp_path, moments.Descent, moments.SplitAtRandom)
    refused = project.run("influence", "--attribution.test_ids=all")
    assert refused.code == 2, refused.out
    assert "generator" in refused.err
    assert "--seed_everything" in refused.err


def test_a_split_by_the_seed_of_the_fit_is_that_of_the_fit(tmp_path):
    project = Project.trained(tmp_path, moments.Descent, moments.SplitAtRandom, max_epochs=100)
    assert_scores_of_the_split(project, project.data.parts[1].indices, "--seed_everything=0")


def assert_scores_of_the_split(project, held, *flags):
    done = project.run("influence", f"--attribution.test_ids=[{held[2]}]", *flags)
    assert done.code == 0, done.err
    stored = influences.load(project.folder / f"outputs/experiment/influences_test_{held[2]}.npz")
    assert stored.train_ids.tolist() == list(project.data.parts[0].indices)
    truth = project.dense().scores(project.tests(2))
    assert off(torch.as_tensor(stored.scores)[None], truth) <= IN_FILES


def test_ids_of_a_split_are_rows_of_the_whole_set(tmp_path):
    project = Project.trained(tmp_path, moments.Descent, moments.SplitByAGenerator, max_epochs=100)
    assert_scores_of_the_split(project, project.data.parts[1].indices)


def test_a_checkpoint_of_the_callback_holds_later_runs_to_its_rows(tmp_path):
    """The test samples are those of the fit, too, whose validation rows the checkpoint holds."""
    scorer = InfluenceCallback(Rows().val_dataloader(), num_queries=1, output_dir=tmp_path / "o")
    project = Project.trained(tmp_path, moments.Descent, moments.SplitAtRandom, callbacks=[scorer], max_epochs=100)
    assert_scores_of_the_split(project, project.data.parts[1].indices, "--seed_everything=5")


def both_draws(project):
    """Dots of the gradients of both draws of each sample."""
    sets = [moments.Shifted(120, 0, shift) for shift in (0.0, 1.0)]
    loader = project.data.train_dataloader()
    parts = [[loader.collate_fn([data[i]]) for i in range(120)] for data in sets]
    return [Dense(project.model, part).dots(project.tests()) for part in parts]


def scores_of_dots(project, done):
    assert done.code == 0, done.err
    found = influences.load(next((project.folder / "outputs").rglob("influences_test_0.npz"))).scores
    return torch.as_tensor(found).double()[None]


def test_one_draw_of_each_augmented_sample_is_scored_the_same_every_time(tmp_path):
    project = Project.trained(tmp_path, moments.Descent, moments.Augmented, max_epochs=30)
    plain, shifted = both_draws(project)
    done = project.influence(DOTS)
    scores = scores_of_dots(project, done)
    tolerance = IN_FILES * float(scores.abs().max())
    is_plain, is_shifted = (scores - plain).abs() <= tolerance, (scores - shifted).abs() <= tolerance
    assert bool((is_plain | is_shifted).all())
    assert 30 < int(is_shifted.sum()) < 90
    assert "augment" in (done.out + done.err).lower()
    again = project.influence(DOTS, "--output_dir=again")
    assert again.code == 0, again.err
    repeated = influences.load(next((tmp_path / "again").rglob("influences_test_0.npz"))).scores
    assert torch.equal(torch.as_tensor(repeated).double()[None], scores)


def test_the_mean_over_several_draws_is_scored_where_asked_for(tmp_path):
    project = Project.trained(tmp_path, moments.Descent, moments.Augmented, max_epochs=30)
    plain, shifted = both_draws(project)
    scores = scores_of_dots(project, project.influence(DOTS, "--adapt.draws=8"))
    share = 8 * (scores - plain) / (shifted - plain)
    sure = (shifted - plain).abs() > 1e-3 * scores.abs().max()
    assert float((share - share.round()).abs()[sure].max()) <= 1e-2
    assert bool(((share.round() >= 0) & (share.round() <= 8))[sure].all())
    assert 3 < float(share[sure].mean()) < 5


def test_the_callback_names_the_augmentation(tmp_path, caplog, capsys):
    scorer = InfluenceCallback(Rows().val_dataloader(), num_queries=1, method=GradientDot(), output_dir=tmp_path / "o")
    project = Project.trained(tmp_path, moments.Descent, moments.Augmented, max_epochs=3, callbacks=[scorer])
    assert "augment" in caplog.text + capsys.readouterr().out
    assert len(singles(project.data.train_dataloader())) == 120
