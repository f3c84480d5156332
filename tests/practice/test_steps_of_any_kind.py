"""Training steps that do more than compute a loss, and fits that train less than it seems: right, or the true cause."""

import re
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import BackboneFinetuning

from ifloo.stages import InfluenceCallback
from ifloo.store import influences
from tests.gallery.dense import Dense, off
from tests.practice import steps
from tests.practice.base import IN_FILES, Project, Rows, Softmax

BRIEF = {"max_epochs": 30}
STATED = ("--adapt.sample_losses=tests.practice.steps.stated", "--adapt.l2=0.02")


def scored(project, *flags, **truth):
    project.assert_right(project.influence("--attribution.damping=1", *flags), damping=1.0, **truth)


def refused(project, *flags):
    outcome = project.influence("--attribution.damping=1", *flags)
    assert outcome.code == 2, outcome.out + outcome.err
    return outcome.err


def test_a_step_that_changes_its_batch_in_place_is_given_a_copy_each_time(tmp_path):
    scored(Project.trained(tmp_path, steps.ChangesItsBatch, **BRIEF), loss=steps.centred)


def test_the_callback_gives_such_a_step_a_copy_too(tmp_path):
    callback = InfluenceCallback(Rows().val_dataloader(), num_queries=1, output_dir=tmp_path / "o")
    project = Project.trained(tmp_path, steps.ChangesItsBatch, callbacks=[callback], **BRIEF)
    stored = influences.load(next((tmp_path / "o").rglob("influences_test_0.npz")))
    truth = project.truth(stored.damping, loss=steps.centred, parameters=["lin.*"])
    assert off(torch.as_tensor(stored.scores)[None], truth) <= IN_FILES


def test_a_penalty_on_the_gradient_of_the_inputs_is_scored(tmp_path):
    scored(Project.trained(tmp_path, steps.Penalised, **BRIEF))


@pytest.mark.parametrize("net", [steps.Checkpointed, steps.CheckpointedReentrantly])
def test_activations_that_are_computed_again_do_not_change_scores(net, tmp_path):
    scored(Project.trained(tmp_path, net, **BRIEF), loss=Unchecked.loss)


class Unchecked(steps.Layers):
    """The same network, without checkpoints."""

    @staticmethod
    def loss(model, batch):
        z = model.lin(torch.tanh(model.body(batch[0])))
        return torch.nn.functional.cross_entropy(z, batch[1]) + model.l2()


def test_the_curvature_of_normalised_weights_is_that_of_elementary_operations(tmp_path):
    """Double backward of torch's fused operation is no second derivative, as finite differences show."""
    project = Project.trained(tmp_path, steps.OfDirections, **BRIEF)
    scored(project, loss=steps.of_directions)
    dense = project.dense(loss=steps.of_directions)
    assert off(slopes_of_the_gradient(dense), dense.hessian()) <= 1e-6


def slopes_of_the_gradient(dense: Dense, step: float = 1e-5) -> torch.Tensor:
    """Returns the Hessian by central differences of the gradient."""
    columns = []
    for p in dense.theta:
        for k in range(p.numel()):
            ends = []
            for change in (step, -2 * step):
                with torch.no_grad():
                    p.view(-1)[k] += change
                ends.append(dense.gradients(dense.train).mean(0))
            with torch.no_grad():
                p.view(-1)[k] += step
            columns.append((ends[0] - ends[1]) / (2 * step))
    return torch.stack(columns)


def test_a_backward_pass_that_fails_on_a_batch_of_one_is_refused_with_the_remedy(tmp_path):
    error = refused(Project.trained(tmp_path, steps.SqueezesAll))
    assert "size mismatch" in error
    assert "squeeze(-1)" in error


def test_gradients_that_an_own_optimizer_step_takes_away_are_seen(tmp_path):
    error = refused(Project.trained(tmp_path, steps.StepsItself, **BRIEF))
    assert "gradient masks (optimizer_step)" in error


def test_a_rate_that_an_own_optimizer_step_sets_changes_nothing(tmp_path):
    scored(Project.trained(tmp_path, steps.WarmsUp, **BRIEF))


@pytest.mark.parametrize("net", [steps.RateOfZero, steps.FreezesAtTheStart, steps.FreezesForItsOptimizer])
def test_parameters_that_no_optimizer_moves_are_the_only_cause_that_is_named(net, tmp_path):
    project = Project.trained(tmp_path, net, **BRIEF)
    error = refused(project)
    assert "(body.weight, body.bias)" in error
    assert "--attribution.parameters \"['lin.*']\"" in error
    assert "another loss of a sample" not in error
    scored(project, "--attribution.parameters=['lin.*']", parameters=["lin.*"])


def test_a_backbone_that_a_callback_froze_is_seen_in_the_checkpoint(tmp_path):
    frozen = BackboneFinetuning(unfreeze_backbone_at_epoch=100)
    project = Project.trained(tmp_path, steps.Finetuned, callbacks=[frozen], **BRIEF)
    error = refused(project)
    assert "its optimizers had 2, configure_optimizers now gives 4" in error
    scored(project, "--attribution.parameters=['lin.*']", parameters=["lin.*"])


def test_a_backbone_that_a_callback_set_free_is_scored(tmp_path):
    freed = BackboneFinetuning(unfreeze_backbone_at_epoch=3)
    scored(Project.trained(tmp_path, steps.Finetuned, callbacks=[freed], **BRIEF))


def test_a_loss_that_depends_on_the_index_of_its_batch_is_refused(tmp_path):
    error = refused(Project.trained(tmp_path, steps.Alternating, steps.FourBatches, **BRIEF))
    assert "batch_idx in the loss" in error


def test_samples_that_a_step_mixes_at_random_are_the_cause_that_is_named(tmp_path):
    error = refused(Project.trained(tmp_path, steps.Mixing, **BRIEF))
    assert "random numbers that training_step draws" in error
    assert "if self.training" in error


def test_a_sum_over_a_constant_is_the_cause_that_is_named(tmp_path):
    error = refused(Project.trained(tmp_path, steps.SumByAConstant))
    assert "a sum over the batch in place of the mean, beside a penalty" in error


def test_gradients_that_are_accumulated_by_hand_are_those_of_the_mean(tmp_path):
    project = Project.trained(tmp_path, steps.ByHand, steps.FourBatches, **BRIEF)
    scored(project, *STATED, loss=steps.stated, penalty=lambda model: model.l2())


def test_several_losses_by_hand_are_the_cause_that_is_named(tmp_path):
    error = refused(Project.trained(tmp_path, steps.TwoLossesByHand, **BRIEF), STATED[0])
    assert "a training_step that optimizes by hand" in error


def test_a_decay_of_some_weights_is_not_said_to_be_one_of_all(tmp_path):
    project = Project.trained(tmp_path, steps.DecaysWeightsAlone, **BRIEF)
    outcome = project.influence("--attribution.damping=1")
    assert "give --adapt.l2" not in outcome.err
    assert "--adapt.penalty" in outcome.err
    flags = ("--adapt.penalty=tests.practice.steps.decay_of_weights", "--overwrite")
    scored(project, *flags, penalty=steps.decay_of_weights)


def test_a_tensor_that_a_step_changes_in_place_stays_in_its_graph(tmp_path):
    scored(Project.trained(tmp_path, steps.TouchesABuffer, **BRIEF), loss=steps.untouched)


def test_an_operation_without_second_derivative_is_named_and_the_remedy_works(tmp_path):
    project = Project.trained(tmp_path, steps.Bags, steps.Words, **BRIEF)
    error = refused(project)
    assert "embedding_bag_backward has no derivative of this order" in error
    assert "--attribution.method.class_path ifloo.attribution.GradientDot" in error
    done = project.influence("--attribution.method.class_path", "ifloo.attribution.GradientDot", "--output_dir=dots")
    assert done.code == 0, done.err
    found = influences.load(next((tmp_path / "dots").rglob("influences_test_0.npz"))).scores
    assert off(torch.as_tensor(found)[None], project.dense().dots(project.tests())) <= IN_FILES


def test_what_a_hook_of_the_fit_sets_is_named_where_it_is_missing(tmp_path):
    error = refused(Project.trained(tmp_path, steps.RemembersTheStart, **BRIEF))
    assert "no attribute 'start'" in error
    assert "what on_train_start would set must be set in __init__ or setup" in error


def test_missing_targets_that_a_step_leaves_out_are_no_fault_of_the_data(tmp_path):
    project = Project.trained(tmp_path, steps.LeavesOutTheMissing, steps.MissingTargets)
    project.assert_right(project.influence())


def test_a_sample_without_any_target_is_named(tmp_path):
    error = refused(Project.trained(tmp_path, steps.MeanOfTheRest, steps.MissingTargets))
    y = steps.MissingTargets().train_dataloader().dataset.tensors[1]
    found = re.search(r"The loss of training sample (\d+) is nan", error)
    assert found, error
    assert bool(y[int(found[1])].isnan().all())


def test_a_sample_that_the_collate_function_drops_is_refused_with_the_remedy(tmp_path):
    error = refused(Project.trained(tmp_path, Softmax, steps.DropsRows))
    assert "without_none failed on one sample" in error
    assert "Subset" in error


@pytest.mark.parametrize("flags", [(), ("--seed_everything=0",)], ids=["no seed", "seed of the fit"])
def test_a_split_that_no_seed_sets_is_refused_with_any_seed(flags, tmp_path):
    error = refused(Project.trained(tmp_path, Softmax, steps.SplitWithoutSeed), *flags)
    assert "random numbers that no seed sets" in error


@pytest.mark.parametrize("data", [steps.Noisy, steps.NoisyByAGenerator], ids=["of each read", "of the dataset"])
@pytest.mark.parametrize("flags", [(), ("--seed_everything=0",)], ids=["no seed", "seed of the fit"])
def test_samples_that_no_seed_repeats_are_no_split(data, flags, tmp_path):
    error = refused(Project.trained(tmp_path, Softmax, data), *flags)
    assert re.search(r"two reads of training sample \d+ differ", error), error
    assert "by random numbers that no seed repeats" in error
    assert "set-up" not in error


def test_a_dataset_that_fails_in_a_worker_process_is_shown_with_its_line(tmp_path, monkeypatch):
    project = Project.trained(tmp_path, Softmax, steps.InWorkers, max_epochs=1)
    monkeypatch.setattr(steps.FailsInAWorker, "over", True)
    lines = Path(steps.__file__).read_text().splitlines()
    number = next(i for i, line in enumerate(lines) if "the line that fails" in line) + 1
    error = refused(project)
    assert "KeyError: 'image_101'" in error
    assert f"steps.py:{number}" in error
