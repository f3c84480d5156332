"""Modules built, set up, loaded and run as Lightning does: scores are right, or the user's own line is named."""

import re
from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from ifloo.errors import InputError
from ifloo.stages import InfluencePredictor
from tests.cli.running import ifloo
from tests.gallery.dense import off
from tests.practice import loading
from tests.practice.base import IN_FILES, IN_MEMORY, Project, Softmax, rows

HERE = "tests.practice.loading"
AT = ("--attribution.test_ids=[0]", "--trainer.accelerator=cpu")


@pytest.mark.parametrize(
    "net",
    [loading.ConfiguredLater, loading.MadeInSetup, loading.Lazy, loading.FrozenBase],
    ids=lambda net: net.__name__,
)
def test_a_module_is_complete_before_its_weights_are_loaded(net, tmp_path):
    project = Project.trained(tmp_path, net)
    damping = 1e-3
    project.assert_right(project.influence(f"--attribution.damping={damping}"), damping)


def test_a_data_module_may_ask_its_trainer(tmp_path):
    project = Project.trained(tmp_path, Softmax, loading.WorldSized)
    project.assert_right(project.influence())


@pytest.mark.parametrize("net", [loading.TrainerReader, loading.Measured], ids=lambda net: net.__name__)
def test_a_step_may_ask_its_trainer_and_measure(net, tmp_path):
    project = Project.trained(tmp_path, net)
    project.assert_right(project.influence())


def test_a_step_may_call_its_logger(tmp_path):
    project = Project.trained(tmp_path, loading.LoggerReader, logger=CSVLogger(tmp_path / "logs"))
    project.assert_right(project.influence())


def test_a_predictor_leaves_the_metrics_of_the_user_alone(tmp_path):
    project = Project.trained(tmp_path, loading.Measured)
    model, query = project.model, tuple(part[:1] for part in rows(9, 1))
    model.mean.update(torch.tensor(2.5))
    mean = model.mean.compute().clone()
    before = {name: value.clone() for name, value in model.accuracy.metric_state.items()}
    predictor = InfluencePredictor(model, project.data.train_dataloader(), queries=query)
    predictor.build_engine()
    scores = predictor.engine.scores(query).value
    assert torch.equal(model.mean.compute(), mean)
    assert all(torch.equal(model.accuracy.metric_state[name], value) for name, value in before.items())
    assert model.training
    assert off(scores, project.truth()) <= IN_MEMORY


def test_arguments_are_filled_from_the_checkpoint(tmp_path):
    project = Project.trained(tmp_path, lambda: loading.Sized(4, 3), lambda: loading.SizedRows(60))
    project.assert_right(project.influence())


def test_a_function_may_build_module_and_data(tmp_path):
    project = Project.trained(tmp_path, lambda: loading.Sized(4, 3), lambda: loading.SizedRows(60))
    done = ifloo(tmp_path, "influence", f"--build={HERE}.make", "--ckpt_path=c.ckpt", *AT)
    project.assert_right(done)


@pytest.mark.parametrize(
    ("net", "named"),
    [(loading.FolderOfRuns, "PosixPath"), (loading.OptimizerGiven, "partial")],
    ids=["a path", "an optimizer"],
)
def test_objects_in_hyper_parameters_are_named_and_read_where_the_file_is_trusted(net, named, tmp_path):
    project = Project.trained(tmp_path, net)
    refused = project.influence()
    assert refused.code == 2, refused.out + refused.err
    assert named in refused.err
    assert "--trust_checkpoint" in refused.err
    done = project.influence("--trust_checkpoint=true")
    project.assert_right(done)
    assert "sha256" in done.out + done.err


def test_data_inside_the_module_are_found(tmp_path):
    project = Project.trained(tmp_path, loading.WithItsData)
    net = f"--model={HERE}.WithItsData"
    done = ifloo(tmp_path, "influence", net, "--ckpt_path=c.ckpt", *AT)
    project.assert_right(done)
    examined = ifloo(tmp_path, "doctor", net, "--ckpt_path=c.ckpt", "--trainer.accelerator=cpu")
    assert examined.code in (0, 1), examined.err  # 1: a finding
    assert "Traceback" not in examined.err


def test_one_of_several_validation_loaders_is_chosen_by_its_number(tmp_path):
    project = Project.trained(tmp_path, Softmax, loading.TwoTests)
    refused = project.influence()
    assert refused.code == 2, refused.out
    assert "--data_loader" in refused.err
    done = project.influence("--data_loader=1")
    query = tuple(part[:1] for part in rows(9, 2))
    assert off(project.scores(done), project.dense().scores([query])) <= IN_FILES


def test_an_empty_test_set_is_named(tmp_path):
    project = Project.trained(tmp_path, Softmax, loading.EmptyTests, limit_val_batches=0)
    refused = project.influence()
    assert refused.code == 2, refused.out
    assert "EmptyTests.val_dataloader" in refused.err


def test_test_batches_of_another_form_than_training_s_are_named(tmp_path):
    project = Project.trained(tmp_path, Softmax, loading.TestsOfAnotherForm, limit_val_batches=0)
    refused = project.influence()
    assert refused.code == 2, refused.out
    assert "TestsOfAnotherForm.val_dataloader" in refused.err


@pytest.mark.parametrize(
    ("net", "kind"), [(loading.Mistaken, "AttributeError"), (loading.Misread, "KeyError")], ids=["attribute", "key"]
)
def test_an_error_of_the_user_s_code_is_shown_with_its_line(net, kind, tmp_path, monkeypatch):
    project = Project.trained(tmp_path, net)
    monkeypatch.setattr(net, "renamed", True)
    lines = Path(loading.__file__).read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if f"class {net.__name__}" in line)
    number = next(i for i in range(start, len(lines)) if "the line that fails" in lines[i]) + 1
    refused = project.influence()
    assert refused.code == 2, refused.out + refused.err
    assert f"training_step of {net.__name__} failed" in refused.err
    assert kind in refused.err
    assert f"loading.py:{number}" in refused.err
    query = tuple(part[:1] for part in rows(9, 1))
    predictor = InfluencePredictor(project.model, project.data.train_dataloader(), queries=query)
    with pytest.raises(InputError, match=kind):
        predictor.build_engine()


def test_the_damping_that_a_refusal_names_gives_scores_in_the_same_folder(tmp_path):
    project = Project.trained(tmp_path, loading.Deep, max_epochs=20)
    refused = project.influence()
    assert refused.code in (1, 2), refused.out
    named = re.search(r"damping[= ](?:more than )?(\d[\d.e+-]*\d)", refused.err)
    assert named, refused.err
    damping = float(named[1])
    done = project.influence(f"--attribution.damping={damping}")
    project.assert_right(done, damping)


def test_refits_of_a_module_whose_optimizer_asks_the_trainer_end_in_a_verdict(tmp_path):
    project = Project.trained(tmp_path, loading.Deep, max_epochs=20)
    done = project.run(
        "pipeline",
        "--attribution.test_ids=[0]",
        "--attribution.damping=0.5",
        "--trainer.max_epochs=20",
        "--refit.top_k=2",
        "--refit.random=2",
        "--refit.null_refits=2",
        "--trainer.logger=false",
        "--finish.after=never",
    )
    assert done.code == 0, done.err
    assert (tmp_path / "outputs/experiment/verdict.json").exists()
