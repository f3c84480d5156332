"""Plain modules and data with one fault at a time, for the tests of the doctor."""

import functools

import lightning as L
import torch
from torch import nn, optim
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from ifloo.attribution import Unrolled
from ifloo.doctor.examine import DoctorInput
from ifloo.doctor.fit_findings import Fit, read_optimizers
from ifloo.models import Adapted, SampleLossModule
from ifloo.stages import AttributionSettings

N, D, C = 120, 4, 3
DRAW = torch.Generator().manual_seed(0)
X = torch.randn(N, D, generator=DRAW, dtype=torch.float64)
Y = torch.randint(C, (N,), generator=DRAW)
SGD = functools.partial(optim.SGD, lr=0.1)


class Plain(L.LightningModule):
    """Logistic regression with a given optimizer; `more` is added to its loss."""

    def __init__(self, optimizer=SGD, more=lambda logits, labels: 0.0):
        super().__init__()
        self.layer, self.optimizer, self.more = nn.Linear(D, C, dtype=torch.float64), optimizer, more

    def training_step(self, batch, _):
        logits = self.layer(batch[0])
        return F.cross_entropy(logits, batch[1]) + self.more(logits, batch[1])

    def configure_optimizers(self):
        return self.optimizer(self.parameters())


class Stated(SampleLossModule):
    """The same model under the contract."""

    def __init__(self, optimizer=SGD, l2=0.01):
        super().__init__()
        self.layer, self.optimizer, self.l2 = nn.Linear(D, C, dtype=torch.float64), optimizer, l2

    def sample_losses(self, batch):
        return F.cross_entropy(self.layer(batch[0]), batch[1], reduction="none")

    def penalty(self):
        return 0.5 * self.l2 * sum(p.square().sum() for p in self.parameters())

    def configure_optimizers(self):
        return self.optimizer(self.parameters())


def losses(model, batch):
    return F.cross_entropy(model.layer(batch[0]), batch[1], reduction="none")


class Data(L.LightningDataModule):
    """A data module with one loader, returned unchanged."""

    def __init__(self, loader=None):
        super().__init__()
        self.loader = loaded() if loader is None else loader  # `loader or ...` would ask a stream for its length

    def train_dataloader(self):
        return self.loader


def dataset(n: int = N, ids: bool = True) -> TensorDataset:
    return TensorDataset(X[:n], Y[:n], *([torch.arange(n)] if ids else []))


def loaded(of: Dataset | None = None, **settings) -> DataLoader:
    return DataLoader(dataset() if of is None else of, **({"batch_size": 50} | settings))


class Noisy(Dataset):
    """A data set that adds new noise to sample 3 at each read."""

    def __len__(self):
        return N

    def __getitem__(self, i):
        return (X[i] + 0.1 * torch.randn(D, dtype=torch.float64) if i == 3 else X[i]), Y[i], i


class OwnNoise(Noisy):
    """A data set that adds new noise to each sample, drawn by a generator of its own."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(0)

    def __getitem__(self, i):
        return X[i] + 0.1 * torch.randn(D, dtype=torch.float64, generator=self.generator), Y[i], i


class Stream(IterableDataset):
    def __iter__(self):
        return iter(dataset())


def trainer(**settings):
    return L.Trainer(
        **{
            **{"accelerator": "cpu", "devices": 1, "max_epochs": 2, "logger": False, "enable_checkpointing": False},
            **{"enable_model_summary": False, "enable_progress_bar": False},
            **settings,
        }
    )


def subject(module=None, loader=None, data=None, checkpoint=None, recipe=None, unrolled=False, **settings):
    """Builds the input of the doctor."""
    module = module or Stated()
    return DoctorInput(
        module if isinstance(module, SampleLossModule) else Adapted(module),
        data or Data(loader),
        trainer(**settings),
        AttributionSettings(method=Unrolled() if unrolled else None),
        checkpoint,
        recipe or {},
    )


def fit_of(module=None, loader=None, recorded=None, **settings):
    """Builds a fit to examine, with the optimizers of a module."""
    fit = Fit(trainer(**settings), loaded() if loader is None else loader, recorded or {})
    if module is not None:
        module.trainer = fit.stand_in
        assert read_optimizers(module, fit) == []
    return fit
