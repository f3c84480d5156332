"""More of the same kinds of situations: right scores, or the true cause."""

import logging
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from ifloo.attribution import GradientDot
from ifloo.stages import InfluenceCallback
from ifloo.store import influences
from tests.gallery.dense import off
from tests.practice import further
from tests.practice.base import IN_FILES, Project, Rows, Softmax
from tests.practice.batches import OfDicts
from tests.practice.moments import SmallBatches


def by_callback(folder, net, data=Rows, scorer=None, others=(), **settings):
    scorer = {"num_queries": 1, **(scorer or {})}
    callback = InfluenceCallback(data().val_dataloader(), output_dir=folder / "o", **scorer)
    project = Project.trained(folder, net, data, callbacks=[callback, *others], **settings)
    files = sorted((folder / "o").rglob("influences_test_0.npz"))
    return project, influences.load(files[0]) if files else None


def test_features_without_gradients_have_none(tmp_path):
    project = Project.trained(tmp_path, further.FrozenFeatures)
    project.assert_right(project.influence("--attribution.parameters=['lin.*']"), parameters=["lin.*"])


def test_a_stopped_gradient_of_late_rows_alone_is_found(tmp_path):
    project = Project.trained(tmp_path, further.StoppedForOneClass, further.SortedRows, max_epochs=300)
    project.assert_right(project.influence("--attribution.damping=0.01"), damping=0.01)


def test_an_epoch_read_from_the_trainer_is_the_last(tmp_path):
    project = Project.trained(tmp_path, further.AskedEpoch, max_epochs=12)
    epoch = project.trainer.fit_loop.epoch_progress.current
    before = epoch.completed
    epoch.completed = 11  # while the last epoch ran
    try:
        truth = project.truth()
    finally:
        epoch.completed = before
    assert off(project.scores(project.influence()), truth) <= IN_FILES


@pytest.mark.parametrize("net", [further.HookedEpoch, further.UnsavedScale], ids=lambda net: net.__name__)
def test_what_hooks_set_and_no_checkpoint_holds_is_set_again_or_refused(net, tmp_path):
    project = Project.trained(tmp_path, net, max_epochs=12)
    outcome = project.influence()
    if outcome.code == 0:
        project.assert_right(outcome)
    else:
        assert outcome.code == 2, outcome.err
        assert "J is not what was trained" in outcome.err


def test_a_data_module_is_given_its_state_from_the_checkpoint(tmp_path):
    project = Project.trained(tmp_path, Softmax, further.RowsWithState)
    project.assert_right(project.influence("--seed_everything=9"))


@pytest.mark.parametrize(
    ("net", "data"),
    [
        (further.OfFields, further.NamedPairs),
        (further.OfFields, further.Sheets),
        (further.OfNested, further.Nested),
    ],
    ids=["named tuple", "dataclass", "nested"],
)
def test_batches_keep_their_form(net, data, tmp_path):
    project = Project.trained(tmp_path, net, data)
    project.assert_right(project.influence())
    project, stored = by_callback(tmp_path / "fit", net, data)
    assert off(torch.as_tensor(stored.scores)[None], project.truth(stored.damping)) <= IN_FILES


def test_batches_that_the_dataset_makes_itself_are_samples(tmp_path):
    project = Project.trained(tmp_path, further.Descent, further.BatchedByTheDataset, max_epochs=10)
    project.assert_right(project.influence())


def test_no_id_is_magic(tmp_path):
    project = Project.trained(tmp_path, OfDicts, further.Numbered)
    done = project.run("influence", "--attribution.test_ids=[-1]")
    assert done.code == 0, done.err
    stored = influences.load(next((tmp_path / "outputs").rglob("influences_test_-1.npz")))
    assert stored.train_ids.tolist() == list(range(-1, 119))
    assert off(torch.as_tensor(stored.scores)[None], project.truth()) <= IN_FILES


def test_a_dataset_that_fails_at_a_late_row_is_shown_with_its_line(tmp_path, monkeypatch):
    project = Project.trained(tmp_path, Softmax, further.BrokenRows)
    monkeypatch.setattr(further.Broken, "over", True)
    lines = Path(further.__file__).read_text().splitlines()
    number = next(i for i, line in enumerate(lines) if "the line that fails" in line) + 1
    refused = project.influence()
    assert refused.code == 2, refused.out + refused.err
    assert "AttributeError" in refused.err
    assert f"further.py:{number}" in refused.err


def test_each_training_sample_is_read_at_most_twice(tmp_path, monkeypatch):
    project = Project.trained(tmp_path, Softmax, further.CountedRows)
    monkeypatch.setattr(further.Counted, "reads", 0)
    done = project.influence()
    assert done.code == 0, done.err
    assert further.Counted.reads <= 2 * 120


def test_a_head_that_is_no_layer_is_scored_by_dots_of_gradients(tmp_path):
    project, stored = by_callback(tmp_path, further.FunctionalHead)
    assert off(torch.as_tensor(stored.scores)[None], project.dense().dots(project.tests())) <= IN_FILES


def test_the_head_is_found_beside_attention(tmp_path):
    project, stored = by_callback(tmp_path, further.Attentive)
    truth = project.truth(stored.damping, parameters=["lin.*"])
    assert off(torch.as_tensor(stored.scores)[None], truth) <= IN_FILES


def test_scores_are_of_the_weights_after_other_callbacks_have_changed_them(tmp_path):
    project, stored = by_callback(
        tmp_path, further.Descent, scorer={"method": GradientDot()}, others=[further.Rounding()]
    )
    assert off(torch.as_tensor(stored.scores)[None], project.dense().dots(project.tests())) <= IN_FILES


def test_the_best_checkpoint_is_scored_where_asked_for_and_named_where_not(tmp_path, caplog):
    def watcher(folder):
        return ModelCheckpoint(folder / "best", monitor="val_loss", mode="min")

    settings = {"enable_checkpointing": True, "max_epochs": 3}
    with caplog.at_level(logging.INFO, logger="ifloo"):
        by_callback(
            tmp_path / "a",
            further.Watched,
            scorer={"method": GradientDot()},
            others=[watcher(tmp_path / "a")],
            **settings,
        )
    assert "best" in caplog.text
    best = {"method": GradientDot(), "weights": "best"}
    project, stored = by_callback(
        tmp_path / "b", further.Watched, scorer=best, others=[watcher(tmp_path / "b")], **settings
    )
    content = torch.load(next((tmp_path / "b" / "best").glob("*.ckpt")), weights_only=True)
    project.model.load_state_dict(content["state_dict"])
    assert off(torch.as_tensor(stored.scores)[None], project.dense().dots(project.tests())) <= IN_FILES


@pytest.mark.parametrize(
    "setting", [{"limit_train_batches": 1}, {"overfit_batches": 1}], ids=lambda one: next(iter(one))
)
def test_a_fit_on_a_part_of_its_loader_is_named(setting, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="ifloo"):
        by_callback(tmp_path, Softmax, SmallBatches, **setting)
    assert next(iter(setting)) in caplog.text
