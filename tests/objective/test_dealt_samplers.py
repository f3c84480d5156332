"""Samplers whose draws are dealt out to the processes of a `ddp` fit, by Lightning or by the author."""

import itertools

import pytest
import pytorch_lightning.overrides.distributed as plain
import torch
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from lightning_fabric.utilities.distributed import DistributedSamplerWrapper as PlainWrapper
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    Sampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from ifloo.errors import InputError
from ifloo.objective.epoch_weights import batches_of_epoch, epoch_weights
from ifloo.objective.sampling import refuse_partial, refuse_rows_apart

N = 10
DATA = TensorDataset(torch.arange(float(N)))
WRAPPERS = (DistributedSamplerWrapper, PlainWrapper, plain.UnrepeatedDistributedSamplerWrapper)
A = torch.arange(1.0, N + 1, dtype=torch.float64)


class Fixed(Sampler):
    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)

    def __len__(self):
        return len(self.rows)


class Permuted(Fixed):
    def __iter__(self):
        return iter([self.rows[i] for i in torch.randperm(len(self.rows)).tolist()])


class Backwards(DistributedSampler):
    def __iter__(self):
        return iter([N - 1 - i for i in super().__iter__()])


class Favoured(DistributedSampler):
    def __iter__(self):
        return iter([0] * 3 + torch.randint(N, (2,)).tolist())


class Pairs(BatchSampler):
    """Batches of a class of the user's."""


def mean_share(batches, a=None):
    total = torch.zeros(N, dtype=torch.float64)
    for batch in batches:
        own = torch.ones(len(batch), dtype=torch.float64) if a is None else a[batch]
        for i, share in zip(batch, (own / own.sum()).tolist(), strict=True):
            total[i] += share / len(batches)
    return total


def shares(loader, a=None):
    refuse_partial(loader)
    found = epoch_weights(loader, a)
    return torch.full((N,), 1 / N, dtype=torch.float64) if found is None else found.shares


@pytest.mark.parametrize(
    "wrapper", [DistributedSamplerWrapper, PlainWrapper, plain.UnrepeatedDistributedSamplerWrapper]
)
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("rank", [0, 1])
class TestOfLightning:
    def loader(self, sampler, wrapper, shuffle, rank, size=2):
        return DataLoader(DATA, batch_size=size, sampler=wrapper(sampler, num_replicas=2, rank=rank, shuffle=shuffle))

    def test_drawn_by_weights_is_refused_as_on_one_process(self, wrapper, shuffle, rank):
        sampler = WeightedRandomSampler([1.0] * (N - 1) + [100.0], N)
        with pytest.raises(InputError) as alone:
            refuse_partial(DataLoader(DATA, batch_size=2, sampler=sampler))
        with pytest.raises(InputError) as wrapped:
            refuse_partial(self.loader(sampler, wrapper, shuffle, rank))
        assert str(wrapped.value) == str(alone.value)

    def test_part_of_the_samples(self, wrapper, shuffle, rank):
        loader = self.loader(SubsetRandomSampler([6, 7, 8, 9]), wrapper, shuffle, rank)
        assert shares(loader).tolist() == [0] * 6 + [0.25] * 4
        with pytest.raises(InputError, match="SubsetRandomSampler"):
            refuse_rows_apart(loader)
        orders = list(itertools.permutations([6, 7, 8, 9]))
        mean = sum(mean_share([list(o[::2]), list(o[1::2])], a=A) for o in orders) / len(orders)
        torch.testing.assert_close(shares(loader, A), mean, rtol=1e-11, atol=0)

    def test_same_part_in_each_epoch(self, wrapper, shuffle, rank):
        rows = [9, 3, 8, 1]
        loader = self.loader(Fixed(rows), wrapper, shuffle, rank)
        orders = list(itertools.permutations(rows)) if shuffle else [rows]
        mean = sum(mean_share([list(o[::2]), list(o[1::2])], a=A) for o in orders) / len(orders)
        torch.testing.assert_close(shares(loader, A), mean, rtol=1e-11, atol=0)
        assert shares(loader).tolist() == [0.25 * (i in rows) for i in range(N)]

    def test_random_part_is_refused(self, wrapper, shuffle, rank):
        with pytest.raises(InputError, match="Permuted"):
            refuse_partial(self.loader(Permuted([0, 0, 1, 2, 3, 4]), wrapper, shuffle, rank))

    def test_all_samples_in_random_order_count_alike(self, wrapper, shuffle, rank):
        loader = self.loader(Permuted(list(range(N))), wrapper, shuffle, rank, 5)
        assert shares(loader).tolist() == [1 / N] * N
        orders = [torch.randperm(N).tolist() for _ in range(4000)]
        mean = sum(mean_share([o[::2], o[1::2]], a=A) for o in orders) / len(orders)
        torch.testing.assert_close(shares(loader, A), mean, rtol=0.1, atol=0)

    def test_state_of_the_sampler_stays(self, wrapper, shuffle, rank):
        loader, before = self.loader(Permuted(list(range(N))), wrapper, shuffle, rank), torch.get_rng_state()
        refuse_partial(loader)
        batches_of_epoch(loader)
        assert torch.equal(torch.get_rng_state(), before)
        assert loader.sampler.dataset._sampler_list is None
        assert loader.sampler.rank == rank


def test_class_of_the_author_is_followed():
    each = [Backwards(DATA, 2, rank, shuffle=False) for rank in range(2)]
    batches = [batch for sampler in each for batch in BatchSampler(sampler, 3, False)]
    for sampler in each:
        found = shares(DataLoader(DATA, batch_size=3, sampler=sampler), A)
        torch.testing.assert_close(found, mean_share(batches, a=A), rtol=1e-15, atol=0)


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_class_of_the_author_that_shuffles_all_samples_counts_them_alike(processes):
    sampler = Backwards(DATA, processes, 0, shuffle=True)
    assert shares(DataLoader(DATA, batch_size=2, sampler=sampler)).tolist() == pytest.approx([1 / N] * N)


def test_class_of_the_author_that_favours_samples_is_refused():
    with pytest.raises(InputError, match="Favoured"):
        refuse_partial(DataLoader(DATA, batch_size=2, sampler=Favoured(DATA, 2, 0)))


@pytest.mark.parametrize("inner", [False, True])
def test_batches_of_the_author_on_each_process(inner):
    def sampler(rank):
        if inner:
            return DistributedSamplerWrapper(Fixed([9, 3, 8, 1]), num_replicas=2, rank=rank, shuffle=False)
        return DistributedSampler(DATA, 2, rank, shuffle=False)

    each = [Pairs(sampler(rank), 2, False) for rank in range(2)]
    batches = [batch for one in each for batch in one]
    for one in each:
        found = shares(DataLoader(DATA, batch_sampler=one), A)
        torch.testing.assert_close(found, mean_share(batches, a=A), rtol=1e-15, atol=0)
