"""Ids in the projects of users on the command line: what is data stays data, and scores belong to the right samples."""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor

from ifloo.cli.adaptation import Adaptation, data_of
from ifloo.data import AdaptedData, MNISTDataModule, Samples
from ifloo.data.adapted import training_loader
from ifloo.errors import InputError
from ifloo.models import LogisticRegression
from ifloo.objective import sample_ids
from ifloo.objective.id_rule import _noted
from ifloo.stages import AttributionSettings, InfluencePredictor
from ifloo.store import influences
from tests.cli import id_projects
from tests.cli.plain_running import QUIET
from tests.cli.running import Outcome, ifloo

PROJECT = id_projects.__name__
N = id_projects.N


@pytest.fixture(autouse=True)
def notes_of_each_run() -> None:
    _noted.clear()


def fitted(folder: Path, model: str, data: str) -> L.LightningModule:
    L.seed_everything(0, verbose=False)
    module = getattr(id_projects, model)()
    trainer = L.Trainer(max_epochs=2, accelerator="cpu", enable_checkpointing=False, default_root_dir=folder, **QUIET)
    trainer.fit(module, datamodule=getattr(id_projects, data)())
    trainer.save_checkpoint(folder / "own.ckpt", weights_only=True)
    return module


def influence(folder: Path, model: str, data: str, *more: str) -> Outcome:
    named = (
        f"--model={PROJECT}.{model}",
        f"--data={PROJECT}.{data}",
        "--ckpt_path=own.ckpt",
        "--trainer.accelerator=cpu",
    )
    return ifloo(folder, "influence", *named, *more)


def scores(folder: Path, t: int) -> dict[int, float]:
    found = influences.load(folder / f"outputs/experiment/influences_test_{t}.npz")
    return dict(zip(found.train_ids.tolist(), found.scores.tolist(), strict=True))


def dense(module: L.LightningModule, samples: Any, test: Any) -> list[float]:
    """−(1/n) ∇L_t·H⁻¹∇ℓ_i of all samples by plain autograd, of the trained parameters and one sample at a time."""
    trained = {n: p.detach() for n, p in module.named_parameters() if p.requires_grad}
    flat = torch.cat([p.flatten() for p in trained.values()])
    collate = torch.utils.data.default_collate

    def loss(at: Tensor, batch: Any) -> Tensor:
        parts = at.split([p.numel() for p in trained.values()])
        named = {f"net.{n}": x.view_as(p) for (n, p), x in zip(trained.items(), parts, strict=True)}
        return torch.func.functional_call(_Step(module), named, (batch,))

    H = torch.autograd.functional.hessian(lambda at: loss(at, collate([samples[i] for i in range(N)])), flat)
    gradients = torch.stack(
        [torch.autograd.functional.jacobian(lambda at, i=i: loss(at, collate([samples[i]])), flat) for i in range(N)]
    )
    of_test = torch.autograd.functional.jacobian(lambda at: loss(at, collate([test])), flat)
    found: list[float] = (-gradients @ torch.linalg.solve(H, of_test) / N).tolist()
    return found


class _Step(torch.nn.Module):
    def __init__(self, net: L.LightningModule) -> None:
        super().__init__()
        self.net = net

    def forward(self, batch: Any) -> Tensor:
        return self.net.training_step(batch, 0)


@pytest.mark.parametrize(
    ("model", "data", "noted"),
    [("Lengths", "LengthsData", True), ("Tokens", "TokensData", False)],
    ids=["third", "idx"],
)
def test_numbers_that_are_no_ids_are_data(tmp_path, caplog, model, data, noted):
    module = fitted(tmp_path, model, data)
    outcome = influence(tmp_path, model, data, "--attribution.test_ids=[2]")
    assert outcome.code == 0, outcome.err
    made = getattr(id_projects, data)()
    expected = dense(module, made.samples(N, 0), made.samples(id_projects.TESTS, 1)[2])
    found = scores(tmp_path, 2)
    assert list(found) == list(range(N))
    np.testing.assert_allclose(list(found.values()), expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    told = [text for text in caplog.messages if "the third item of a batch" in text]
    assert len(told) == noted


def test_a_third_item_that_is_named_is_the_id(tmp_path):
    module = fitted(tmp_path, "Named", "NamedData")
    outcome = influence(tmp_path, "Named", "NamedData", "--adapt.ids=third", "--attribution.test_ids=[998]")
    assert outcome.code == 0, outcome.err
    made = id_projects.NamedData()
    expected = dense(module, made.samples(N, 0), made.samples(id_projects.TESTS, 1)[2])
    found = scores(tmp_path, 998)
    assert list(found) == [1000 - i for i in range(N)]
    np.testing.assert_allclose(list(found.values()), expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def test_lengths_that_are_named_as_ids_are_refused(tmp_path):
    fitted(tmp_path, "Lengths", "LengthsData")
    outcome = influence(tmp_path, "Lengths", "LengthsData", "--adapt.ids=third", "--attribution.test_ids=[2]")
    assert outcome.code == 2
    assert "Sample ids must be unique; 5 occur more than once, the first is 1." in outcome.err


def test_an_id_is_the_row_of_the_whole_that_was_split(tmp_path):
    module, made = fitted(tmp_path, "Net", "SplitData"), id_projects.SplitData()
    train, test = made.part(0, N), made.part(N, N + id_projects.TESTS)
    t = test.indices[1]
    outcome = influence(tmp_path, "Net", "SplitData", f"--attribution.test_ids=[{t}]")
    assert outcome.code == 0, outcome.err
    found = scores(tmp_path, t)
    assert list(found) == train.indices
    expected = dense(module, train, test[1])
    np.testing.assert_allclose(list(found.values()), expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def test_a_pattern_of_a_second_name_of_tied_weights(tmp_path):
    module = fitted(tmp_path, "Tied", "Data")
    outcome = influence(tmp_path, "Tied", "Data", "--attribution.test_ids=[2]", "--attribution.parameters=['head.*']")
    assert outcome.code == 2
    assert "head.weight, which ['head.*'] match, is the same tensor as emb.weight (tied weights)" in outcome.err
    both = "--attribution.parameters=['head.*', 'emb.weight']"
    outcome = influence(tmp_path, "Tied", "Data", "--attribution.test_ids=[2]", both)
    assert outcome.code == 0, outcome.err
    expected = dense(module, id_projects.Data().samples(N, 0), id_projects.Data().samples(id_projects.TESTS, 1)[2])
    np.testing.assert_allclose(list(scores(tmp_path, 2).values()), expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def test_the_setting_is_for_data_that_do_not_state_their_ids():
    with pytest.raises(InputError) as caught:
        data_of(MNISTDataModule(), LogisticRegression(), "third")
    assert str(caught.value) == (
        "MNISTDataModule states the ids of its samples itself; the setting adapt.ids is for data modules that do not.\n"
        "  Leave it out."
    )
    assert Adaptation(ids="third").of(plain := LogisticRegression()) is plain  # its losses are its own matter


class _Contract(id_projects.NamedData):
    """Meets the contract by its own members, and states ids as the third item of its batches."""

    free_settings: frozenset[str] = frozenset()

    @property
    def train_set(self) -> Any:
        return Samples(self.train_dataloader(), "train", "third")


def test_a_data_module_of_the_contract_states_ids_by_its_training_set():
    data = _Contract()
    batches = list(training_loader(data))
    found = {int(i): x.tolist() for b in batches for i, x in zip(sample_ids(b), b.batch[0], strict=True)}
    x = id_projects.rows(N, 0)[0]
    assert found == {1000 - i: x[i].tolist() for i in range(N)}
    assert sample_ids(next(iter(training_loader(AdaptedData(id_projects.Data()))))).sort()[0].tolist() == list(range(N))


@pytest.mark.parametrize(("setting", "ids"), [("third", [1000 - i for i in range(N)]), ("auto", list(range(N)))])
def test_a_predictor_reads_ids_by_its_setting(setting, ids):
    module, data = id_projects.Named(), id_projects.NamedData()
    queries = next(iter(data.val_dataloader()))
    settings = AttributionSettings(damping=1.0, batch_size=16)
    predictor = InfluencePredictor(module, data.train_dataloader(), settings, queries=queries, ids=setting)
    trainer = L.Trainer(accelerator="cpu", enable_checkpointing=False, **QUIET)
    trainer.predict(predictor)
    assert predictor.engine.objective.data.ids.tolist() == ids
    assert predictor.directions.query_ids.tolist() == ids[: id_projects.TESTS]
