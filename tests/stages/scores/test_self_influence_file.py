"""The file of self-influence: what the functions of attribution give, once, and never under other settings."""

import dataclasses
import logging

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from ifloo.attribution import InfluenceEngine, certified_self, last_layer_self, left_out_losses, loss_ranking
from ifloo.attribution.one_step import OneStep
from ifloo.curvature import Damped, Hessian, LinearHead
from ifloo.errors import InputError
from ifloo.models import SampleLossModule
from ifloo.objective import Objective
from ifloo.solvers import CG, Auto, Cholesky, SolveError
from ifloo.stages.scores import self_influence as stage
from ifloo.stages.scores.self_influence import CHECKPOINTS, DAMPING
from ifloo.stages.settings import settings_json
from ifloo.store import Manifest, self_influence, settings_stamp
from tests.stages.scores.test_influence_run import N, digits, run

ASKED = {"test_ids": [0], "self_influence": True}


def test_it_holds_what_the_functions_give(tmp_path):
    one = run(tmp_path, **ASKED)
    one.self_influence()
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
        "scores": {"curvature": "Hessian", "damping": 0.0, "solver": settings_json(CG(rtol=1e-12))},
    }
    assert found.settings == settings_stamp(section["compared"])


EXACT = {**ASKED, "solver": Auto(), "curvature": None}  # as the command line has it


@pytest.mark.parametrize("damping", [0.0, 0.5])
def test_a_linear_head_has_it_as_its_scores_are_made(tmp_path, damping, caplog):
    one = run(tmp_path, **EXACT, damping=damping)
    with caplog.at_level(logging.INFO, "ifloo"):
        one.self_influence()
    found = self_influence.load(one.layout.self_influence)
    objective = Objective.of(one.module, digits().train_dataloader(), ["*"], N)
    theta = objective.losses.theta()
    head = LinearHead(objective, theta)
    engine = InfluenceEngine(objective, theta, Damped(head, damping), Cholesky(), 1.0)
    own = certified_self(engine)
    # The same in batches of 7 and of all.
    np.testing.assert_allclose(found.self_influence, own.value.numpy(), rtol=1e-10)
    left_out = left_out_losses(head, engine.prepared, own)
    np.testing.assert_allclose(found.left_out_loss, left_out.numpy(), rtol=1e-10)
    assert (found.left_out_loss > found.loss).all()  # at one weight for all classes no sample is lost gladly
    assert found.residual <= 1e-10
    # Of the undamped system the damped solution is no solution, whoever solves.
    worst = float(own.undamped_residual.max()) if damping else found.residual
    assert found.undamped_residual == pytest.approx(worst, rel=1e-6)
    # |r| |g|^2 / (n mu), and no eigenvalue of H is above 30 here: g H^-1 g / n >= |g|^2 / (30 n).
    assert 0 < found.error_bound <= 30 * found.residual * found.self_influence.max()
    assert list(found.rankings) == ["self_influence", "last_layer", "left_out_loss", "loss"]
    assert (
        f"self-influence: 31 solves by Cholesky(max_bytes=4294967296, rtol=1e-10, block=64), worst residual "
        f"{found.residual:.1e}." in caplog.messages
    )


def test_its_settings_are_those_of_the_scores(tmp_path):
    run(tmp_path, **EXACT).self_influence()
    with pytest.raises(InputError, match=r"scores.damping: stored 0.0, asked 0.5"):
        run(tmp_path, **EXACT, damping=0.5).self_influence()


def test_scores_by_another_method_leave_it_out(tmp_path):
    one = run(tmp_path, **EXACT, method=OneStep(0.1))
    one.self_influence()
    assert self_influence.load(one.layout.self_influence).self_influence is None
    assert "scores" not in Manifest.at(one.layout.manifest).sections()["self_influence"]["compared"]


def test_solves_that_nobody_would_wait_for_are_left_out(tmp_path, caplog):
    one = run(tmp_path, **ASKED)
    with caplog.at_level(logging.INFO, "ifloo"):
        one.self_influence()
    assert self_influence.load(one.layout.self_influence).self_influence is None
    assert (
        "self-influence: none by the curvature of the scores, which would take 31 solves by CG over 7,840 parameters, "
        "each with passes over all data. Attribute one linear layer (attribution.parameters) for it."
    ) in caplog.messages


class Net(SampleLossModule):
    """Two layers, so that the curvature of all is that of no head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.AvgPool1d(98), nn.Linear(8, 2), nn.Tanh(), nn.Linear(2, 10)).double()
        self.strength = 1.0

    def sample_losses(self, batch):
        return nn.functional.cross_entropy(self.layers(batch["x"]), batch["labels"], reduction="none")

    def penalty(self):
        return 0.5 * self.strength * torch.stack([p.square().sum() for p in self.parameters()]).sum()


def test_few_parameters_are_factorised(tmp_path):
    one = dataclasses.replace(run(tmp_path, **EXACT), module=Net())
    one.self_influence()
    found = self_influence.load(one.layout.self_influence)
    objective = Objective.of(one.module, digits().train_dataloader(), ["*"], N)
    theta = objective.losses.theta()
    own = certified_self(InfluenceEngine(objective, theta, Hessian(objective, theta), Cholesky()))
    np.testing.assert_allclose(found.self_influence, own.value.numpy(), rtol=1e-9)
    assert (found.left_out_loss, found.error_bound) == (None, None)


def test_where_there_is_no_minimum_it_is_left_out(tmp_path, caplog):
    module = Net()
    module.strength = 0.0
    one = dataclasses.replace(run(tmp_path, **EXACT), module=module)
    one.self_influence()
    found = self_influence.load(one.layout.self_influence)
    assert found.self_influence is None
    assert found.last_layer is not None
    (told,) = [m for m in caplog.messages if m.startswith("self-influence: none")]
    with pytest.raises(SolveError) as caught:
        stage._engine(one._methods).prepared.solve(torch.zeros(1, 48))
    assert told == f"self-influence: none by the curvature of the scores. {caught.value}"


def test_it_is_made_once_and_only_if_asked_for(tmp_path):
    run(tmp_path, test_ids=[0]).self_influence()
    assert list(tmp_path.iterdir()) == []
    one = run(tmp_path, **ASKED)
    one.self_influence()
    before = one.layout.self_influence.stat().st_mtime_ns
    run(tmp_path, **ASKED).self_influence()
    assert one.layout.self_influence.stat().st_mtime_ns == before


def test_other_settings_are_refused_and_replaced_on_demand(tmp_path):
    run(tmp_path, **ASKED).self_influence()
    other = dataclasses.replace(run(tmp_path, **ASKED), base_settings={"weights": "other"})
    with pytest.raises(InputError, match="the self_influence results there were made with other settings"):
        other.self_influence()
    dataclasses.replace(other, overwrite=True).self_influence()
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
    run(tmp_path, **ASKED).self_influence()  # without it
    told = []

    def tracin(trained, checkpoints, tick):
        told.append((trained.run, checkpoints))
        return torch.arange(trained.objective.n)

    monkeypatch.setattr(stage, "tracin_self", tracin)
    nowhere = dataclasses.replace(run(tmp_path, **ASKED), recorded=Recorded(tmp_path / "nowhere", "a run"))
    nowhere.self_influence()
    assert told == []
    one = dataclasses.replace(nowhere, recorded=Recorded(tmp_path, "a run"))
    one.self_influence()
    assert told == [("a run", CHECKPOINTS)]
    found = self_influence.load(one.layout.self_influence)
    np.testing.assert_array_equal(found.tracin, np.arange(N))
    assert list(found.rankings) == ["tracin", "last_layer", "loss"]


def test_a_last_layer_that_is_too_large_is_left_out(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(stage, "HEAD_BYTES", 1 << 10)
    one = run(tmp_path, **ASKED)
    one.self_influence()
    assert self_influence.load(one.layout.self_influence).last_layer is None
    assert "self-influence: none of the last layer, whose curvature would keep 0.0 GiB." in caplog.messages


class _Stated(nn.Module):
    """Squares of what some layers give."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def sample_losses(self, batch: torch.Tensor) -> torch.Tensor:
        return self.layers(batch).square().sum(1)

    def penalty(self) -> torch.Tensor:
        return torch.zeros(())


def test_a_layer_without_weights_of_its_own_is_left_out(caplog):
    def last(module):
        return stage.last_linear_layer(Objective.of(module, DataLoader(torch.randn(4, 3), batch_size=4)))

    caplog.set_level("INFO")
    tied = _Stated(nn.Linear(3, 3), nn.Linear(3, 3))
    assert last(tied) == "layers.1"
    tied.layers[1].weight = tied.layers[0].weight
    assert last(tied) is None
    assert caplog.messages[-1] == (
        "self-influence through the last layer: none. The weight of the last layer layers.1 is also layers.0.weight: "
        "its inputs depend on it."
    )
    assert last(_Stated(nn.Linear(3, 3), nn.LayerNorm(3))) is None
