"""Losses that depend on more than parameters and batch: scores are of what was trained, or the true cause is named."""

import pytest
import torch

from ifloo.attribution import GradientDot
from ifloo.stages import AttributionSettings, InfluenceCallback, InfluencePredictor
from ifloo.store import influences
from tests.gallery.dense import off
from tests.practice import losses
from tests.practice.base import IN_FILES, IN_MEMORY, D, Project, Softmax, rows

FOCAL = ("--adapt.sample_losses=tests.practice.losses.focal", "--adapt.l2=0.02")


def text(outcome):
    return outcome.out + outcome.err


@pytest.fixture
def focal(tmp_path):
    return Project.trained(tmp_path, losses.Focal, max_epochs=300)


def focal_truth(project, loss=losses.focal):
    return project.truth(loss=loss, penalty=lambda model: model.l2())


def test_scores_through_a_stopped_gradient_are_of_the_backward_pass(focal):
    done = focal.influence(*FOCAL)
    truth = focal_truth(focal)
    assert off(truth, focal_truth(focal, losses.focal_detached)) <= 1e-13
    assert off(focal.scores(done), truth) <= IN_FILES
    assert "backward" in text(done)


def test_a_loss_without_stopped_gradients_is_not_said_to_have_one(tmp_path):
    project = Project.trained(tmp_path, Softmax)
    done = project.influence()
    project.assert_right(done)
    assert "stopped" not in text(done)


def test_a_stopped_gradient_is_seen_in_training_step_too(focal):
    focal.assert_right(focal.influence())


def test_dots_of_gradients_through_two_layers_are_of_the_backward_pass(tmp_path):
    project = Project.trained(tmp_path, losses.DeepFocal, max_epochs=20)
    done = project.influence("--attribution.method.class_path=ifloo.attribution.GradientDot")
    folder = project.folder / "outputs/experiment"
    found = influences.load(next(folder.rglob("influences_test_0.npz"))).scores
    assert done.code == 0, done.err
    assert off(torch.as_tensor(found)[None], project.dense().dots(project.tests())) <= IN_FILES


@pytest.mark.parametrize("net", [losses.HalvedGradient, losses.StraightThrough])
def test_hooks_and_functions_with_a_gradient_of_their_own_count_as_in_training(net, tmp_path):
    project = Project.trained(tmp_path, net, max_epochs=300)
    project.assert_right(project.influence("--attribution.damping=0.1"), damping=0.1)


def test_class_weights_are_found_in_sorted_data(tmp_path):
    project = Project.trained(tmp_path, losses.ClassWeighted, losses.SortedRows)
    done = project.influence()
    weight = losses.CLASS_WEIGHTS[losses.by_class(120, 0)[1]]
    project.assert_right(done, factors=120 * weight / weight.sum())
    assert "weighs its samples" in text(done)


def test_class_weights_are_found_by_the_callback(tmp_path):
    callback = InfluenceCallback(losses.SortedRows().val_dataloader(), num_queries=1, output_dir=tmp_path / "o")
    project = Project.trained(tmp_path, losses.ClassWeighted, losses.SortedRows, callbacks=[callback])
    weight = losses.CLASS_WEIGHTS[losses.by_class(120, 0)[1]]
    dense = project.dense(factors=120 * weight / weight.sum())
    stored = influences.load(next((tmp_path / "o").rglob("influences_test_0.npz")))
    truth = dense.scores(project.tests(), stored.damping)
    assert off(torch.as_tensor(stored.scores)[None], truth) <= IN_FILES


@pytest.mark.parametrize("net", [losses.WarmedUp, losses.Annealed])
def test_epoch_and_step_in_a_loss_are_those_of_the_last_training_step(net, tmp_path):
    project = Project.trained(tmp_path, net, max_epochs=12)
    project.assert_right(project.influence())


def test_the_callback_scores_with_the_epoch_of_the_end(tmp_path):
    callback = InfluenceCallback(losses.Rows().val_dataloader(), num_queries=1, output_dir=tmp_path / "o")
    project = Project.trained(tmp_path, losses.WarmedUp, max_epochs=12, callbacks=[callback])
    stored = influences.load(next((tmp_path / "o").rglob("influences_test_0.npz")))
    assert off(torch.as_tensor(stored.scores)[None], project.truth(stored.damping)) <= IN_FILES


def test_what_a_module_restores_from_its_checkpoint_is_restored(tmp_path):
    project = Project.trained(tmp_path, losses.Standardised, losses.Prices)
    done = project.influence()
    project.assert_right(done)
    assert 0.001 < float(project.scores(done).abs().max()) < 0.1


def test_a_weighted_sampler_inside_a_batch_sampler_is_refused(tmp_path):
    project = Project.trained(tmp_path, Softmax, losses.ResampledRows)
    refused = project.influence()
    assert refused.code == 2, text(refused)
    assert "WeightedRandomSampler" in refused.err


@pytest.mark.parametrize(("net", "data"), [(losses.Transferred, losses.Rows), (Softmax, losses.ScaledRows)])
def test_batch_hooks_of_module_and_data_module_act_on_scored_batches(net, data, tmp_path):
    project = Project.trained(tmp_path, net, data)
    project.assert_right(project.influence())


def test_scores_of_a_loss_that_differs_in_training_mode_are_of_the_evaluation_mode_and_carry_that(tmp_path):
    project = Project.trained(tmp_path, losses.Smoothed)
    done = project.influence()
    project.assert_right(done)
    assert "evaluation" in text(done)


def test_parameters_that_the_optimizer_does_not_have_are_named(tmp_path):
    project = Project.trained(tmp_path, losses.HeadTrained)
    refused = project.influence()
    assert refused.code == 2, text(refused)
    assert "lin." in refused.err
    assert "attribution.parameters" in refused.err
    right = project.influence("--attribution.parameters=['lin.*']")
    project.assert_right(right, parameters=["lin.*"])


def test_a_gradient_mask_is_not_scored_as_if_it_were_not_there(tmp_path):
    project = Project.trained(tmp_path, losses.MaskedGradient, max_epochs=300)
    refused = project.influence()
    assert refused.code == 2, text(refused)
    assert "on_after_backward" in refused.err


def test_a_predictor_of_the_trained_module_gives_the_same(tmp_path):
    project = Project.trained(tmp_path, losses.Transferred)
    queries = tuple(part[:1] for part in rows(9, 1))
    predictor = InfluencePredictor(
        project.model, project.data.train_dataloader(), AttributionSettings(dtype="float64"), queries=queries
    )
    predictor.build_engine()
    assert off(predictor.engine.scores(queries).value, project.truth()) <= IN_MEMORY
    assert project.model.lin.weight.dtype is D


def test_gradient_dots_by_the_callback_are_of_the_backward_pass(tmp_path):
    callback = InfluenceCallback(
        losses.Rows().val_dataloader(), num_queries=1, method=GradientDot(), output_dir=tmp_path / "o"
    )
    project = Project.trained(tmp_path, losses.DeepFocal, max_epochs=2, callbacks=[callback])
    stored = influences.load(next((tmp_path / "o").rglob("influences_test_0.npz")))
    assert off(torch.as_tensor(stored.scores)[None], project.dense().dots(project.tests())) <= IN_FILES
