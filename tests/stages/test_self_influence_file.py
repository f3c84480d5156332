"""The file of self-influence: what the functions of attribution give, once, and never under other settings."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from ifloo.attribution import last_layer_self, loss_ranking
from ifloo.errors import InputError
from ifloo.objective import Objective
from ifloo.stages import self_influence as stage
from ifloo.stages.self_influence import CHECKPOINTS, DAMPING
from ifloo.store import Manifest, self_influence, settings_stamp
from tests.stages.test_influence_run import N, digits, run, trainer

ASKED = {"test_ids": [0], "self_influence": True}


def test_it_holds_what_the_functions_give(tmp_path):
    one = run(tmp_path, **ASKED)
    one.self_influence(trainer)
    found = self_influence.load(one.layout.self_influence)
    objective = Objective.of(one.module, digits().train_dataloader(), ["*"], N)
    theta = objective.losses.theta()
    np.testing.assert_array_equal(found.train_ids, digits().train_set.ids.numpy())
    # Batches of 7 and of N add up in another order.
    np.testing.assert_allclose(found.loss, loss_ranking(objective, theta).numpy(), rtol=1e-12)
    np.testing.assert_allclose(found.last_layer, last_layer_self(objective, theta, DAMPING).numpy(), rtol=1e-4)
    assert one.module.linear.weight.dtype == torch.float64  # the last layer's is made in 32 bits, of a copy
    assert found.tracin is None  # nobody recorded a run
    section = Manifest.at(one.layout.manifest).sections()["self_influence"]
    assert section["compared"] == {
        "parameters": ["*"],
        "dtype": None,
        "damping": DAMPING,
        "checkpoints": CHECKPOINTS,
    }
    assert found.settings == settings_stamp(section["compared"])


def test_it_is_made_once_and_only_if_asked_for(tmp_path):
    run(tmp_path, test_ids=[0]).self_influence(trainer)
    assert list(tmp_path.iterdir()) == []
    one = run(tmp_path, **ASKED)
    one.self_influence(trainer)
    before = one.layout.self_influence.stat().st_mtime_ns
    run(tmp_path, **ASKED).self_influence(trainer)
    assert one.layout.self_influence.stat().st_mtime_ns == before


def test_other_settings_are_refused_and_replaced_on_demand(tmp_path):
    run(tmp_path, **ASKED).self_influence(trainer)
    other = dataclasses.replace(run(tmp_path, **ASKED), origin={"weights": "other"})
    with pytest.raises(InputError, match="the self_influence results there were made with other settings"):
        other.self_influence(trainer)
    dataclasses.replace(other, overwrite=True).self_influence(trainer)
    stored = self_influence.load(other.layout.self_influence)
    assert stored.settings == settings_stamp(
        Manifest.at(other.layout.manifest).sections()["self_influence"]["compared"]
    )


class Recorded:
    """Where a run of the model would lie."""

    def __init__(self, path, found):
        self.path, self.found = path, found

    def read(self, theta):
        return self.found


def test_a_recorded_run_gives_tracin_too(tmp_path, monkeypatch):
    run(tmp_path, **ASKED).self_influence(trainer)  # without it
    told = []

    def tracin(trained, checkpoints, tick):
        told.append((trained.run, checkpoints))
        return torch.arange(trained.objective.n)

    monkeypatch.setattr(stage, "tracin_self", tracin)
    nowhere = dataclasses.replace(run(tmp_path, **ASKED), recorded=Recorded(tmp_path / "nowhere", "a run"))
    nowhere.self_influence(trainer)
    assert told == []
    one = dataclasses.replace(nowhere, recorded=Recorded(tmp_path, "a run"))
    one.self_influence(trainer)
    assert told == [("a run", CHECKPOINTS)]
    found = self_influence.load(one.layout.self_influence)
    np.testing.assert_array_equal(found.tracin, np.arange(N))
    assert list(found.rankings) == ["tracin", "last_layer", "loss"]


def test_a_last_layer_that_is_too_large_is_left_out(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(stage, "HEAD_BYTES", 1 << 10)
    one = run(tmp_path, **ASKED)
    one.self_influence(trainer)
    assert self_influence.load(one.layout.self_influence).last_layer is None
    assert "self-influence: none of the last layer, whose curvature would keep 0.0 GiB." in caplog.messages


def test_a_layer_without_weights_of_its_own_is_left_out():
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    assert stage._last_layer(tied) == "1"
    tied[1].weight = tied[0].weight
    assert stage._last_layer(tied) is None
    assert stage._last_layer(nn.Sequential(nn.Tanh())) is None
