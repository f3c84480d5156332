"""Samples that change from read to read: found wherever they are, fixed by a seed, or refused."""

import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from ifloo.errors import InputError
from ifloo.objective import sequential
from ifloo.objective.augmentation import find_augmentation, warn_of_augmentation
from ifloo.objective.loaders import unwrap_loader
from ifloo.objective.seeded_draws import SeededDraws

DRAWS = {
    "torch": lambda: torch.randn(2),
    "numpy": lambda: torch.as_tensor(np.random.normal(size=2)),
    "python": lambda: torch.tensor([random.random(), random.random()]),
}


class Noisy(Dataset):
    """Adds noise to the samples from `first` on."""

    def __init__(self, draw, n=400, first=0):
        self.draw, self.n, self.first, self.reads = draw, n, first, []

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        self.reads.append(i)
        x = torch.full((2,), float(i))
        return x + self.draw() if i >= self.first else x


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
@pytest.mark.parametrize("first", [0, 200])
def test_a_seed_fixes_what_the_global_generators_draw(draw, first):
    found = find_augmentation(DataLoader(Noisy(draw, first=first), batch_size=7))
    assert found is not None
    assert found.seeded
    assert int(found.how.split("sample ")[1].split()[0]) >= first


def test_what_another_generator_draws_no_seed_fixes():
    own = np.random.default_rng()
    loader = DataLoader(Noisy(lambda: torch.as_tensor(own.normal(size=2))))
    found = find_augmentation(loader)
    assert found is not None
    assert not found.seeded
    with pytest.raises(InputError, match="The training data change: two reads of training sample"):
        warn_of_augmentation(loader)


@pytest.mark.parametrize("n", [1, 2, 3, 20, 400])
def test_fixed_samples_are_read_at_most_twice(n):
    data = Noisy(lambda: torch.zeros(2), n)
    assert find_augmentation(DataLoader(data)) is None
    assert np.bincount(data.reads, minlength=n).max() <= 2
    assert np.bincount(data.reads, minlength=n)[-1] == 2


@pytest.mark.parametrize("drawn", DRAWS.values(), ids=DRAWS)
def test_a_collate_function_that_draws_is_fixed_too(drawn):
    def masked(samples):
        (x,) = zip(*samples, strict=True)
        return torch.stack(x) + drawn()[0]

    loader = DataLoader(TensorDataset(torch.arange(40.0).reshape(20, 2)), batch_size=1, collate_fn=masked)
    found = find_augmentation(loader)
    assert found is not None
    assert found.seeded
    first, second = (torch.cat(list(sequential(loader, 1))) for _ in range(2))
    assert torch.equal(first, second)
    assert len((first - loader.dataset.tensors[0])[:, 0].unique()) == 20


def test_the_draw_of_a_sample_is_that_of_its_row_in_any_subset_and_block():
    data = Noisy(DRAWS["torch"])
    whole = SeededDraws(data)
    rows = [7, 300, 7, 11]
    part = SeededDraws(Subset(Subset(data, range(399, -1, -1)), [399 - i for i in rows]))
    for k, row in enumerate(rows):
        assert torch.equal(part[k], whole[row])
    blocks = part.__getitems__([0, 1, 2, 3]), whole.__getitems__(rows)
    assert all(torch.equal(a, b) for a, b in zip(*blocks, strict=True))
    assert not torch.equal(whole[7], SeededDraws(data, 1)[7])


def test_data_sets_that_return_whole_batches_are_read_as_they_are():
    class Whole(Noisy):
        def __getitems__(self, rows):
            return {"x": torch.as_tensor(rows)}

    loader = DataLoader(Whole(DRAWS["torch"], 10), batch_size=4, collate_fn=lambda batch: batch)
    assert torch.equal(torch.cat([b["x"] for b in sequential(loader, 4)]), torch.arange(10))


def test_the_same_data_set_is_the_same_when_unwrapped_again():
    loader = DataLoader(Noisy(DRAWS["torch"]))
    first, second = (unwrap_loader(loader)[0] for _ in range(2))
    assert first == second
    assert len({first, second}) == 1
