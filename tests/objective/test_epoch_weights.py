"""J is what the epochs of a fit descend: its weights c_i against every order of tiny data, drawn by torch's loaders."""

import itertools

import lightning as L
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    TensorDataset,
)

from ifloo.errors import InputError
from ifloo.models import Adapted
from ifloo.objective import Objective, SampleWeights
from ifloo.objective.epoch_weights import EpochWeights, batches_of_epoch, epoch_weights
from ifloo.objective.functional import Path
from ifloo.objective.sampling import refuse_partial
from ifloo.refit import NewtonFinish
from tests.objective.expected_shares import of_shuffles

N = 7
DATA = TensorDataset(torch.arange(N))
BY_CLASS = torch.tensor([1.0, 5.0, 2.0], dtype=torch.float64)
A = torch.tensor([1.0, 5.0, 2.0, 0.0, 0.5, 5.0, 3.0], dtype=torch.float64)


def mean_share(batches, n=N, a=None):
    """The mean over batches of a_i / Σ_B a, row by row."""
    found, a = torch.zeros(n, dtype=torch.float64), torch.ones(n, dtype=torch.float64) if a is None else a
    for batch in batches:
        total = sum(a[i] for i in batch)
        for i in batch:
            found[i] += a[i] / total if total > 0 else 0.0
    return found / len(batches)


def shares(loader, a=None):
    refuse_partial(loader)
    return batches_of_epoch(loader).shares(a)


class InThisOrder(Sampler):
    def __init__(self, order):
        self.order = order

    def __iter__(self):
        return iter(self.order)

    def __len__(self):
        return len(self.order)


@pytest.mark.parametrize("weights", [None, A], ids=["equal", "weights"])
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3, 6, 7, 9])
def test_a_shuffle_is_the_mean_over_all_orders(size, drop_last, weights):
    if drop_last and size > N:
        return
    found = shares(DataLoader(DATA, batch_size=size, shuffle=True, drop_last=drop_last), weights)
    orders = list(itertools.permutations(range(N)))
    mean = sum(mean_share(list(BatchSampler(InThisOrder(o), size, drop_last)), a=weights) for o in orders) / len(orders)
    torch.testing.assert_close(found, mean, rtol=1e-11, atol=1e-14)
    if weights is None:
        assert found.tolist() == [1 / N] * N  # exactly


@pytest.mark.parametrize("weights", [None, A], ids=["equal", "weights"])
def test_an_epoch_of_two_shuffles(weights):
    sampler = RandomSampler(TensorDataset(torch.arange(4)), num_samples=8)
    loader = DataLoader(TensorDataset(torch.arange(4)), batch_size=3, sampler=sampler)
    orders = list(itertools.permutations(range(4)))
    a = None if weights is None else weights[:4]
    epochs = [[*one, *two] for one in orders for two in orders]
    mean = sum(mean_share([e[:3], e[3:6], e[6:]], 4, a) for e in epochs) / len(epochs)
    torch.testing.assert_close(shares(loader, a), mean, rtol=1e-11, atol=0)


@pytest.mark.parametrize("weights", [None, A], ids=["equal", "weights"])
@pytest.mark.parametrize("drop_last", [False, True])
def test_batches_in_order_are_taken_as_they_are(drop_last, weights):
    loader = DataLoader(DATA, batch_size=3, drop_last=drop_last)
    found = shares(loader, weights)
    torch.testing.assert_close(found, mean_share([b[0].tolist() for b in loader], a=weights), rtol=1e-15, atol=0)
    assert bool(found[6] == 0) == drop_last
    if weights is None and not drop_last:
        assert found.tolist() == pytest.approx([1 / 9] * 6 + [1 / 3])  # not 1/7 each


@pytest.mark.parametrize("batch_size", [None, 1, 7])
def test_equal_batches_in_order_are_the_plain_mean(batch_size):
    assert epoch_weights(DataLoader(DATA, batch_size=batch_size)) is None


def test_part_of_the_rows_shuffled():
    rows = [5, 0, 2, 6]
    loader = DataLoader(DATA, batch_size=3, sampler=SubsetRandomSampler(rows))
    for a in (None, A):
        orders = list(itertools.permutations(rows))
        mean = sum(mean_share([o[:3], o[3:]], a=a) for o in orders) / len(orders)
        torch.testing.assert_close(shares(loader, a), mean, rtol=1e-11, atol=0)
    assert "3 of 7 samples have c_i = 0" in epoch_weights(loader).text


@pytest.mark.parametrize("drop_last", [False, True])
def test_processes_in_order_have_their_batches_averaged(drop_last):
    each = [DistributedSampler(DATA, 3, rank, shuffle=False, drop_last=drop_last) for rank in range(3)]
    batches = [batch for sampler in each for batch in BatchSampler(sampler, 2, False)]
    for sampler in each:
        found = shares(DataLoader(DATA, batch_size=2, sampler=sampler), A)
        torch.testing.assert_close(found, mean_share(batches, a=A), rtol=1e-15, atol=0)


def test_processes_that_shuffle_weigh_equally():
    sampler = DistributedSampler(DATA, 3, 1, shuffle=True)
    assert shares(DataLoader(DATA, batch_size=2, sampler=sampler)).tolist() == [1 / N] * N


class Buckets:
    """Batches of neighbours, in random order: the same sets in each epoch."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        for k in torch.randperm(len(self.batches)).tolist():
            yield self.batches[k]


@pytest.mark.parametrize("batches", [[[0, 1, 2, 3], [4], [5, 6]], [[0, 1], [2, 0]], [[3], [2, 5, 1]]])
def test_batches_that_come_again_in_another_order_are_exact(batches):
    for a in (None, A):
        found = shares(DataLoader(DATA, batch_sampler=Buckets(batches)), a)
        torch.testing.assert_close(found, mean_share(batches, a=a), rtol=1e-15, atol=0)


def test_a_sampler_seeded_by_itself_in_each_epoch_comes_again():
    class Same(Sampler):
        def __iter__(self):
            return iter(torch.randperm(N, generator=torch.Generator().manual_seed(3)).tolist())

    loader = DataLoader(DATA, batch_size=3, sampler=Same())
    torch.testing.assert_close(shares(loader, A), mean_share([b[0].tolist() for b in loader], a=A), rtol=1e-15, atol=0)


def test_a_sampler_that_is_told_the_epoch_is_followed_through_other_epochs():
    class Told(Sampler):
        epoch = 0

        def set_epoch(self, epoch):
            self.epoch = epoch

        def __iter__(self):
            return iter([(k + self.epoch) % N for k in range(N)])

    sampler = Told()
    loader = DataLoader(DATA, batch_size=3, sampler=sampler)
    assert shares(loader).tolist() == [1 / N] * N
    torch.testing.assert_close(shares(loader, torch.ones(N)).sum(), torch.tensor(1.0, dtype=torch.float64))
    assert sampler.epoch == 0


class RandomSizes:
    """Random batches of one, two and four: short batches hold any sample."""

    def __iter__(self):
        order = torch.randperm(N).tolist()
        yield from (order[:1], order[1:3], order[3:])


def test_random_batches_of_other_sizes_give_each_sample_the_same():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    loader = DataLoader(DATA, batch_sampler=RandomSizes())
    assert epoch_weights(loader) is None
    assert torch.equal(torch.get_rng_state(), before)


def test_random_batches_of_other_sizes_with_weights_are_averaged_over_epochs():
    loader = DataLoader(DATA, batch_sampler=RandomSizes())
    found = shares(loader, A)
    orders = itertools.permutations(range(N))
    exact = torch.stack([mean_share((o[:1], o[1:3], o[3:]), a=A) for o in orders]).mean(0)
    # The share of a sample in an epoch lies in [0, 1/3]: a standard deviation below .17, over 2,000 epochs .004.
    assert (found - exact).abs().max() < 5 * 0.004
    assert found[1] == found[5]  # of one weight
    assert torch.equal(found, shares(loader, A))
    assert "on average over the batches of RandomSizes in 2000 epochs" in epoch_weights(loader, A).text


def test_no_batch_at_all():
    with pytest.raises(
        InputError, match=r"drop_last=True leaves out the 7 samples, which fill no batch of 8\. Nothing was trained"
    ):
        epoch_weights(DataLoader(DATA, batch_size=8, drop_last=True, shuffle=True))


def test_a_batch_size_that_changes_is_that_of_the_present_loader():
    first, later = (DataLoader(DATA, batch_size=b, shuffle=True) for b in (2, 6))
    assert not torch.allclose(shares(first, A), shares(later, A), rtol=1e-2)


class ClassWeights(L.LightningModule):
    def __init__(self, alone):
        super().__init__()
        torch.manual_seed(0)
        self.lin, self.alone = nn.Linear(2, 3, dtype=torch.float64), alone

    def training_step(self, batch, _):
        if self.alone:
            float(batch[0].sum())  # no transform runs this: each sample goes through the step alone
        return F.cross_entropy(self.lin(batch[0]), batch[1], weight=BY_CLASS)


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize(("size", "shuffle"), [(2, True), (3, True), (4, False), (7, True)])
def test_the_gradient_of_j_is_the_mean_over_all_epochs_of_the_gradients_of_their_batches(size, shuffle, alone):
    module = ClassWeights(alone)
    g = torch.Generator().manual_seed(1)
    x, y = torch.randn(N, 2, generator=g, dtype=torch.float64), torch.tensor([0, 1, 2, 1, 0, 2, 2])
    loader = DataLoader(TensorDataset(x, y), batch_size=size, shuffle=shuffle)
    a = BY_CLASS[y]
    objective = Objective.of(Adapted(module), loader).weighted(epoch_weights(loader, a))
    assert (objective.losses.path is Path.LOOP) == alone
    theta = objective.losses.theta()
    found, value = objective.gradient(theta), float(objective.value(theta))

    orders = list(itertools.permutations(range(N))) if shuffle else [tuple(range(N))]
    batches = [b for order in orders for b in BatchSampler(InThisOrder(order), size, False)]
    total, loss_of_all, seen = 0.0, 0.0, {}
    for batch in map(tuple, map(sorted, batches)):
        if batch not in seen:
            loss = module.training_step((x[list(batch)], y[list(batch)]), 0)
            slope = torch.cat([p.flatten() for p in torch.autograd.grad(loss, list(module.parameters()))])
            seen[batch] = slope, loss.item()
        total, loss_of_all = total + seen[batch][0], loss_of_all + seen[batch][1]
    assert value == pytest.approx(loss_of_all / len(batches), rel=1e-11)
    torch.testing.assert_close(found, total / len(batches), rtol=1e-11, atol=1e-15)
    if size < N:
        of_all = Objective.of(Adapted(module), loader).weighted(a)
        assert (of_all.gradient(of_all.losses.theta()) - found).norm() > 1e-3 * found.norm()


def test_shuffled_classes_are_those_of_counting():
    a = torch.tensor([1.0, 5.0, 2.0], dtype=torch.float64)[torch.arange(37) % 5 % 3]
    loader = DataLoader(TensorDataset(torch.arange(37)), batch_size=8, shuffle=True)
    torch.testing.assert_close(shares(loader, a), of_shuffles(a, 8), rtol=1e-11, atol=0)


def test_sums_are_taken_of_the_parts_that_a_step_weighs_as_j_does():
    """Two steps for the two classes in the data, though c_i is not in proportion to a_i, and none for weight 0."""
    x, y = torch.randn(N, 2, dtype=torch.float64), torch.tensor([0, 1, 1, 1, 0, 1, 1])
    loader = DataLoader(TensorDataset(x, y), batch_size=2, shuffle=True)
    module, rows = ClassWeights(alone=True), SubsetRandomSampler([0, 1, 2, 3, 4, 5])
    plain = Objective.of(Adapted(module), DataLoader(TensorDataset(x, y), batch_size=N))
    (batch,) = plain.weighted(epoch_weights(loader, BY_CLASS[y])).data
    assert [part.rows for part in batch.batch.summed] == [(1, 2, 3, 5, 6), (0, 4)]
    (batch,) = plain.weighted(BY_CLASS[y]).data  # one batch of all: c_i is in proportion to a_i
    assert [part.rows for part in batch.batch.summed] == [tuple(range(N))]
    some = DataLoader(TensorDataset(x, y), batch_size=2, sampler=rows)
    (batch,) = plain.weighted(epoch_weights(some, BY_CLASS[y])).data
    assert [part.rows for part in batch.batch.summed] == [(1, 2, 3, 5), (0, 4)]


def test_a_module_states_the_weights_of_its_samples_by_id():
    module, ids = Adapted(ClassWeights(alone=False)), torch.tensor([30, 10, 20])
    assert module.share_of([10]) is None
    module.state_weights(ids, EpochWeights(torch.tensor([0.5, 0.2, 0.3]).double(), None, ""))
    assert module.share_of([30, 20]) == pytest.approx(0.8)
    again = module.again(ClassWeights(alone=False)).weights_of(torch.tensor([10, 20]))
    assert again.shares.tolist() == pytest.approx([0.2, 0.3])
    assert again.in_batch is None
    assert SampleWeights.removing([30], "drop", 3, module.share_of([30])).default == pytest.approx(2)
    with pytest.raises(InputError, match="Removing 2 of 3 samples leaves none that was trained on"):
        SampleWeights.removing([0, 1], "drop", 3, 1.0)


def test_weights_that_a_module_states_are_those_of_the_latest_statement():
    module, ids = Adapted(ClassWeights(alone=False)), torch.tensor([30, 10, 20])
    shares, in_batch = torch.tensor([0.5, 0.2, 0.3]).double(), torch.tensor([5.0, 2.0, 3.0]).double()
    module.state_weights(ids, EpochWeights(shares, in_batch, ""))
    assert module.weights_of(ids).in_batch.tolist() == [5, 2, 3]
    module.state_weights(ids, EpochWeights(shares, None, ""))
    assert module.weights_of(ids).in_batch is None
    module.state_weights(ids, None)
    assert module.weights_of(ids) is None
    assert module.share_of([10]) is None


def test_a_finish_that_is_used_again_has_the_weights_of_its_loader():
    finish, rows = NewtonFinish(), TensorDataset(torch.randn(10, 2).double(), torch.arange(10) % 3)
    module, ids = Adapted(ClassWeights(alone=False)), torch.arange(10)
    in_order, shuffled = DataLoader(rows, batch_size=4), DataLoader(rows, batch_size=4, shuffle=True)
    truth = torch.tensor([1 / 12] * 8 + [1 / 6] * 2).double() * 10
    for loader, factors in ((in_order, truth), (shuffled, None), (in_order, truth)):
        found = finish.objective(module, loader).factors
        assert factors is None if found is None else torch.allclose(found.double(), factors)
    weights = EpochWeights(torch.linspace(0.05, 0.15, 10).double(), None, "")
    module.state_weights(ids, weights)
    assert torch.allclose(finish.objective(module, shuffled).factors.double(), 10 * weights.shares)
    module.state_weights(ids, None)
    assert finish.objective(module, shuffled).factors is None


class Following(Sampler):
    """Gives the batches that a function returns at each epoch."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches())


def cut(rows, *sizes):
    ends = [0, *itertools.accumulate(sizes)]
    return [rows[a:b] for a, b in itertools.pairwise(ends)]


def by_batches(n, batches):
    return DataLoader(TensorDataset(torch.arange(n)), batch_sampler=Following(batches))


def test_rows_that_a_random_sampler_never_draws_have_no_weight():
    loader = by_batches(64, lambda: cut(torch.randperm(60).tolist(), *[12] * 5))
    assert (shares(loader)[60:] == 0).all()
    torch.testing.assert_close(shares(loader)[:60], torch.full((60,), 1 / 60, dtype=torch.float64), rtol=0, atol=1e-15)


def test_rows_that_are_always_in_the_short_batch_weigh_more():
    loader = by_batches(64, lambda: [*cut(torch.randperm(60).tolist(), *[12] * 5), [60, 61, 62, 63]])
    expected = torch.cat([torch.full((60,), 1 / 72), torch.full((4,), 1 / 24)]).double()
    torch.testing.assert_close(shares(loader), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("drawn", [100, 97])
def test_samples_that_a_random_sampler_treats_alike_are_the_plain_mean(drawn):
    sizes = [4, 16, 16, 4, 16, 16, 4, 16, drawn - 92]
    loader = by_batches(100, lambda: cut(torch.randperm(100).tolist(), *sizes))
    assert epoch_weights(loader) is None


def test_weights_too_far_apart_are_refused():
    loader = DataLoader(TensorDataset(torch.arange(40)), batch_size=8, shuffle=True)
    with pytest.raises(InputError, match=r"lie a factor of 1e\+24 apart"):
        epoch_weights(loader, torch.tensor([1e-12, 1e12], dtype=torch.float64).repeat(20))
