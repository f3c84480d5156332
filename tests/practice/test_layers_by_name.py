"""The layer whose output is the logits, and patterns of tied parameters."""

import logging

import pytest
import torch

from ifloo.stages import InfluenceCallback
from ifloo.store import influences
from tests.gallery.dense import off
from tests.practice import layers
from tests.practice.base import IN_FILES, Project, Rows


def scored(folder, net, **settings):
    callback = InfluenceCallback(Rows().val_dataloader(), num_queries=1, output_dir=folder / "o", **settings)
    project = Project.trained(folder, net, callbacks=[callback])
    return project, influences.load(next((folder / "o").rglob("influences_test_0.npz")))


@pytest.mark.parametrize("net", [layers.Unused, layers.HeadFirst, layers.PixelHead])
def test_the_callback_scores_through_the_layer_that_gives_the_logits(net, tmp_path):
    project, stored = scored(tmp_path, net)
    truth = project.truth(stored.damping, parameters=["lin.*"])
    assert off(torch.as_tensor(stored.scores)[None], truth) <= IN_FILES


def test_without_a_layer_of_logits_the_callback_takes_dots_of_gradients_and_warns(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        project, stored = scored(tmp_path, layers.Embedded)
    assert off(torch.as_tensor(stored.scores)[None], project.dense().dots(project.tests())) <= IN_FILES
    assert "gradient" in caplog.text.lower()


def test_a_pattern_of_a_tied_layer_takes_the_shared_weight_or_names_its_owner(tmp_path):
    project = Project.trained(tmp_path, layers.Tied, layers.Tokens)
    outcome = project.influence("--attribution.parameters=['head.*']")
    if outcome.code == 0:
        project.assert_right(outcome, parameters=["emb.weight", "head.bias"])
    else:
        assert outcome.code == 2
        assert "emb.weight" in outcome.err
