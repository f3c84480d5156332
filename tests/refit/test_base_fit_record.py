"""The checkpoint of `fit_base` tells which data the fit trained on."""

import lightning as L
import torch
from torch.utils.data import DataLoader, TensorDataset, random_split

from ifloo.data import AdaptedData
from ifloo.data.fit_record import FitRecord
from ifloo.models import LogisticRegression
from ifloo.refit import NewtonFinish, TrainerSettings, fit_base
from ifloo.solvers import Nystrom


class Split(L.LightningDataModule):
    def setup(self, stage: str) -> None:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(30, 4, generator=generator, dtype=torch.float64)
        self.train, self.test = random_split(TensorDataset(x, torch.arange(30) % 3), [24, 6])

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, batch_size=24)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.test, batch_size=6)


def test_the_rows_of_a_random_split_are_recorded(tmp_path):
    data, path = Split(), tmp_path / "base.ckpt"
    finish = NewtonFinish("always", 1e-12, preconditioner=Nystrom(rank=4))
    model = LogisticRegression(num_features=4, num_classes=3, l2_reg=0.1)
    fit_base(model, AdaptedData(data), TrainerSettings(accelerator="cpu").trainer(finish), finish, path, {})
    record = FitRecord.read(torch.load(path, weights_only=True))
    assert record is not None
    assert [rows.tolist() for rows in record.subsets] == [list(data.train.indices)]
    assert record.fingerprint == FitRecord.of(data.train_dataloader()).fingerprint
