"""Several draws of each sample where losses are computed sample by sample, with plain autograd."""

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from ifloo.data import AdaptedData
from ifloo.data.kept_samples import ReadSettings
from ifloo.models import Adapted
from ifloo.objective import Objective
from ifloo.objective.functional import Path
from ifloo.objective.seeded_draws import SeededDraws


class Series(Dataset):
    """Series of different lengths, with noise."""

    def __len__(self):
        return 20

    def __getitem__(self, i):
        return torch.randn(3 + i % 4, 2, dtype=torch.float64), torch.tensor(float(i % 2), dtype=torch.float64)


class Recurrent(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net, self.head = nn.LSTM(2, 3, batch_first=True).double(), nn.Linear(3, 1).double()

    def training_step(self, batch, index):
        x, y = batch
        return (self.head(self.net(x)[1][0][-1]).squeeze(1) - y).square().mean()


class Data(L.LightningDataModule):
    def train_dataloader(self):
        return DataLoader(Series(), batch_size=1)


@pytest.mark.parametrize("draws", [1, 2])
def test_the_gradient_of_the_mean_over_draws(draws):
    torch.manual_seed(0)
    module = Recurrent()
    data = AdaptedData(Data(), reads=ReadSettings(draws=draws))
    data.setup("fit")
    objective = Objective.of(Adapted(module), data.train_dataloader())
    assert objective.losses.path is Path.LOOP
    theta = objective.losses.theta()
    value, gradient = objective.value_and_gradient(theta)

    reads = [SeededDraws(Series(), k)[i] for k in range(draws) for i in range(20)]
    expected = torch.stack([module.training_step((x[None], y[None]), 0) for x, y in reads]).mean()
    expected.backward()
    assert float(value) == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(
        gradient, torch.cat([p.grad.flatten() for p in module.parameters()]), rtol=1e-9, atol=1e-12
    )
    assert objective.data.ids.tolist() == list(range(20))
