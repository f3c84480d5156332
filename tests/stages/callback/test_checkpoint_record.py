"""Checkpoints of a fit with the callback tell which data it trained on."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, random_split

from ifloo.data.fit_record import KEY, FitRecord
from ifloo.objective import Identified
from ifloo.stages import InfluenceCallback
from tests.stages.callback.fits import N, Stated, fitted, loader, samples

QUERIES = samples(2, seed=1)[:]


class Split(L.LightningDataModule):
    """Splits at random in `setup`, without a generator of its own."""

    def setup(self, stage: str) -> None:
        self.train, self.val = random_split(samples(N), [30, 7])

    def train_dataloader(self) -> Any:
        return DataLoader(self.train, batch_size=8, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(self.val, batch_size=7)


class Validated(Stated):
    def validation_step(self, batch, batch_idx):
        self.log("score", 1.0)


def record_in(path: Path) -> FitRecord:
    record = FitRecord.read(torch.load(path, weights_only=True))
    assert record is not None
    return record


def test_checkpoints_during_and_after_a_fit_hold_the_rows_of_each_subset(tmp_path):
    data = Split()
    trainer = fitted(Validated(), data, [InfluenceCallback(QUERIES)], tmp_path, enable_checkpointing=True)
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    (during,) = tmp_path.rglob("epoch=*.ckpt")
    for path in (during, tmp_path / "after.ckpt"):
        found = record_in(path)
        assert [rows.tolist() for rows in found.subsets] == [list(data.train.indices)]
        assert [rows.tolist() for rows in found.evaluation["val"]] == [list(data.val.indices)]
        assert found.fingerprint == FitRecord.of(data.train_dataloader()).fingerprint
        assert (found.n, found.behind) == (30, (("TensorDataset", N),))


@pytest.mark.parametrize("settings", [{}, {"limit_val_batches": 0}])
def test_rows_of_validation_are_recorded_though_nothing_is_validated(tmp_path, settings):
    data = Split()
    kind = Validated if settings else Stated
    fitted(kind(), data, [InfluenceCallback(QUERIES)], tmp_path, **settings).save_checkpoint(tmp_path / "c.ckpt")
    found = record_in(tmp_path / "c.ckpt").evaluation
    assert [rows.tolist() for rows in found["val"]] == [list(data.val.indices)]


class InModule(Stated):
    """Holds its data itself, and has no validation step."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = random_split(samples(N), [30, 7])

    def train_dataloader(self) -> Any:
        return DataLoader(self.parts[0], batch_size=8)

    def val_dataloader(self) -> Any:
        return DataLoader(self.parts[1], batch_size=7)


def test_rows_of_validation_in_the_module_or_given_to_the_fit_are_recorded(tmp_path):
    module = InModule()
    rows = list(module.parts[1].indices)
    fitted(module, None, [InfluenceCallback(QUERIES, output_dir=tmp_path / "0")], tmp_path).save_checkpoint(
        tmp_path / "c.ckpt"
    )
    assert [x.tolist() for x in record_in(tmp_path / "c.ckpt").evaluation["val"]] == [rows]
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        callbacks=[InfluenceCallback(QUERIES, output_dir=tmp_path / "1")],
    )
    trainer.fit(Stated(), loader(), module.val_dataloader())
    trainer.save_checkpoint(tmp_path / "d.ckpt")
    assert [x.tolist() for x in record_in(tmp_path / "d.ckpt").evaluation["val"]] == [rows]


class ThreeWays(Split):
    """Tests of their own, and two validation loaders."""

    def setup(self, stage: str) -> None:
        self.train, self.val, self.test = random_split(samples(N), [20, 7, N - 27])

    def val_dataloader(self) -> Any:
        return [DataLoader(self.val, batch_size=7), DataLoader(self.test, batch_size=7)]

    def test_dataloader(self) -> Any:
        return DataLoader(self.test, batch_size=7)


class ValidatedTwice(Stated):
    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.log("score", 1.0)


def test_rows_of_tests_and_of_each_validation_loader_are_recorded(tmp_path):
    data = ThreeWays()
    fitted(ValidatedTwice(), data, [InfluenceCallback(QUERIES)], tmp_path).save_checkpoint(tmp_path / "c.ckpt")
    found = {name: rows[0].tolist() for name, rows in record_in(tmp_path / "c.ckpt").evaluation.items()}
    assert found == {"val.0": list(data.val.indices), "val.1": list(data.test.indices), "test": list(data.test.indices)}


def test_limits_of_the_trainer_are_recorded(tmp_path):
    trainer = fitted(Stated(), loader(), [InfluenceCallback(QUERIES)], tmp_path, limit_train_batches=2)
    trainer.save_checkpoint(tmp_path / "c.ckpt")
    assert record_in(tmp_path / "c.ckpt").limit_train_batches == 2


def test_a_fit_that_is_not_scored_records_its_data_too(tmp_path, caplog):
    trainer = fitted(Stated(), loader(), [InfluenceCallback(Identified(QUERIES, torch.tensor([4, 4])))], tmp_path)
    assert any("InfluenceCallback is off for this fit" in text for text in caplog.messages)
    trainer.save_checkpoint(tmp_path / "c.ckpt")
    assert record_in(tmp_path / "c.ckpt").n == N


def test_data_that_cannot_be_read_leave_the_record_out(tmp_path, monkeypatch):
    def fail(*args: Any) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr("ifloo.stages.callback.training_data.FitRecord.of", fail)
    trainer = fitted(Stated(), loader(), [InfluenceCallback(QUERIES)], tmp_path)
    trainer.save_checkpoint(tmp_path / "c.ckpt")
    assert KEY not in torch.load(tmp_path / "c.ckpt", weights_only=True)


@pytest.mark.parametrize("callbacks", [1, 2])
def test_several_callbacks_write_one_record(tmp_path, callbacks):
    several = [InfluenceCallback(QUERIES, output_dir=tmp_path / str(k)) for k in range(callbacks)]
    trainer = fitted(Stated(), loader(), several, tmp_path)
    trainer.save_checkpoint(tmp_path / "c.ckpt")
    assert record_in(tmp_path / "c.ckpt").n == N
    assert all((tmp_path / str(k) / "epoch_003").exists() for k in range(callbacks))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"limit_train_batches": 2}, "limit_train_batches = 2"),
        ({"overfit_batches": 1}, "overfit_batches = 1"),
        ({"reload_dataloaders_every_n_epochs": 1}, "reload_dataloaders_every_n_epochs = 1"),
    ],
)
def test_a_fit_of_part_of_its_data_is_not_scored_and_goes_on(tmp_path, settings, named, caplog):
    trainer = fitted(Stated(), loader(shuffle=False), [InfluenceCallback(QUERIES)], tmp_path, **settings)
    assert trainer.state.finished
    assert named in caplog.text
    assert not (tmp_path / "influence" / "manifest.json").exists()
