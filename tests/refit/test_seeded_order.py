"""The order of batches is that of the seed, whatever else draws from the global generator during a fit."""

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, RandomSampler

from ifloo.objective.loaders import Identified, identified
from ifloo.refit import NewtonFinish, TrainerSettings
from tests.refit.trained import InSevens, N, Trained, dataset, perceptron


class Seen(L.Callback):
    """Notes the samples of each batch, and draws like a validation loop does where it is told to."""

    def __init__(self, draws):
        self.draws, self.ids = draws, []

    def on_train_batch_start(self, trainer, module, batch, _):
        self.ids.append((batch.positions if isinstance(batch, Identified) else batch[2]).tolist())

    def on_train_epoch_end(self, *_):
        torch.rand(self.draws)


def order(loader, draws, seed=0):
    seen = Seen(draws)
    L.seed_everything(seed, verbose=False)
    trainer = TrainerSettings(max_epochs=3, accelerator="cpu").trainer(NewtonFinish("never"))
    trainer.callbacks.append(seen)
    trainer.fit(Trained(perceptron()), loader)
    return seen.ids


def flat(batches):
    return [i for ids in batches for i in ids]


def in_sevens(ids):
    data = dataset(ids=ids)
    return DataLoader(data, batch_sampler=InSevens(RandomSampler(data)))


LOADERS = {
    "batch sampler of another class": lambda: in_sevens(ids=True),
    "its positions": lambda: identified(in_sevens(ids=False)),
    "own ids": lambda: DataLoader(dataset(ids=True), batch_size=7, shuffle=True),
    "positions": lambda: identified(DataLoader(dataset(), batch_size=7, shuffle=True)),
}


@pytest.mark.parametrize("make", LOADERS.values(), ids=LOADERS)
def test_it_follows_the_seed_alone(make):
    first = order(make(), draws=0)
    assert len({tuple(flat(first[4 * e : 4 * e + 4])) for e in range(3)}) == 3
    assert sorted(flat(first[:4])) == sorted(flat(first[4:8]))
    assert len(flat(first)) == 3 * N
    assert order(make(), draws=5) == first
    assert order(make(), draws=0, seed=1) != first


@pytest.mark.parametrize("make", LOADERS.values(), ids=LOADERS)
def test_one_loader_may_serve_many_fits(make):
    loader = make()
    assert order(loader, draws=2) == order(loader, draws=0)


def test_a_generator_of_ones_own_is_left_alone():
    generator = torch.Generator().manual_seed(4)
    loader = DataLoader(dataset(ids=True), batch_size=7, shuffle=True, generator=generator)
    order(loader, draws=0)
    assert loader.sampler.generator is generator
