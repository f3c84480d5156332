"""Which samples a loader draws in an epoch, and which ways of drawing are another objective."""

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from ifloo.errors import InputError
from ifloo.objective.epoch_batches import drawn_by
from ifloo.objective.sampling import refuse_partial, refuse_rows_apart

N = 23
DATA = TensorDataset(torch.arange(float(N)))


class ByLength:
    """Batches of neighbours in length, in random order: each sample once an epoch."""

    def __init__(self, generator=None, repeat=1, leave_out=0):
        self.generator, self.repeat, self.leave_out, self.epochs = generator, repeat, leave_out, 0

    def __iter__(self):
        self.epochs += 1
        batches = list(torch.arange(N - self.leave_out).split(5)) * self.repeat
        for i in torch.randperm(len(batches), generator=self.generator).tolist():
            yield batches[i].tolist()


class Endless(Sampler):
    def __iter__(self):
        while True:
            yield int(torch.randint(N, ()))


class Favourite(Sampler):
    def __init__(self, data):
        self.data = data

    def __iter__(self):
        yield from [0, *range(N)]


def batches(sampler, size=4, drop_last=False):
    return DataLoader(DATA, batch_sampler=BatchSampler(sampler, size, drop_last))


class Favourites(Sampler):
    """Some samples in random order, and some of them again."""

    def __init__(self, count, again=0):
        self.count, self.again = count, again

    def __iter__(self):
        order = torch.randperm(N).tolist()[: self.count]
        yield from [*order, *order[: self.again]]


EQUAL = {
    "in order": DataLoader(DATA, batch_size=4),
    "shuffled": DataLoader(DATA, batch_size=4, shuffle=True, drop_last=True),
    "a batch sampler": batches(RandomSampler(DATA)),
    "each twice": batches(RandomSampler(DATA, num_samples=2 * N)),
    "by length": DataLoader(DATA, batch_sampler=ByLength()),
    "by length, each three times": DataLoader(DATA, batch_sampler=ByLength(repeat=3)),
    "by length, without the last batch": DataLoader(DATA, batch_sampler=ByLength(leave_out=3)),
    "one by one": DataLoader(DATA, batch_size=None, shuffle=True),
}
KNOWN = {  # weights in J are exact: `epoch_weights`
    "some rows": DataLoader(DATA, sampler=SubsetRandomSampler(range(9))),
    "few, the same in each epoch": DataLoader(DATA, batch_sampler=ByLength(leave_out=9)),
    "one more often in each epoch": batches(Favourite(DATA)),
}
UNEQUAL = {
    "weights": (
        batches(WeightedRandomSampler([1.0] * N, N), N),
        "The fit has another objective, in which some samples count more than others. ",
    ),
    "again and again": (
        DataLoader(DATA, sampler=RandomSampler(DATA, replacement=True)),
        "The fit draws some samples again and leaves others out (replacement=True). ",
    ),
    "few": (batches(RandomSampler(DATA, num_samples=7)), "It draws 7 of 23 samples. "),
    "few, at random": (batches(Favourites(7)), "It draws 7 of 23 samples, and one of them 1 times. "),
    "one more often, at random": (batches(Favourites(N, 1)), "It draws 23 of 23 samples, and one of them 2 times. "),
}


@pytest.mark.parametrize("loader", [*EQUAL.values(), *KNOWN.values()], ids=[*EQUAL, *KNOWN])
def test_samples_drawn_equally_often_or_with_a_known_weight(loader):
    refuse_partial(loader)


def test_rows_of_a_sampler_are_refused_where_j_is_over_all_rows_by_definition():
    refuse_rows_apart(DataLoader(DATA, batch_size=4, shuffle=True))
    with pytest.raises(InputError) as caught:
        refuse_rows_apart(KNOWN["some rows"])
    assert str(caught.value) == (
        "The training loader draws with SubsetRandomSampler; J is the mean over every sample once.\n"
        "  Use shuffle=True or False; for a part of the data wrap the dataset (torch.utils.data.Subset)."
    )


@pytest.mark.parametrize(("loader", "how"), UNEQUAL.values(), ids=UNEQUAL)
def test_samples_drawn_otherwise(loader, how):
    with pytest.raises(InputError) as caught:
        refuse_partial(loader)
    assert str(caught.value) == (
        f"The training loader draws with {type(drawn_by(loader)).__name__}; J is the mean over every sample once.\n"
        f"  {how}Use shuffle=True or False; for a part of the data wrap the dataset (torch.utils.data.Subset)."
    )


def test_a_sampler_without_end():
    with pytest.raises(InputError, match="The training loader draws with Endless"):
        refuse_partial(DataLoader(DATA, sampler=Endless()))


def test_looking_draws_nothing_from_the_samplers_own_generator():
    generator = torch.Generator().manual_seed(3)
    own = ByLength(generator)
    torch.manual_seed(4)
    before = generator.get_state(), torch.get_rng_state()
    refuse_partial(DataLoader(DATA, batch_sampler=own))
    assert torch.equal(generator.get_state(), before[0])
    assert torch.equal(torch.get_rng_state(), before[1])
    assert own.epochs == 0


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"limit_train_batches": 0.5}, "limit_train_batches = 0.5"),
        ({"limit_train_batches": 2}, "limit_train_batches = 2"),
        ({"overfit_batches": 0.25}, "overfit_batches = 0.25"),
        ({"reload_every_n_epochs": 1}, "reload_dataloaders_every_n_epochs = 1"),
    ],
)
def test_trainers_of_part_of_the_data(settings, named):
    loader = DataLoader(DATA, sampler=SequentialSampler(DATA), batch_size=5)
    with pytest.raises(InputError) as caught:
        refuse_partial(loader, **settings)
    assert named in str(caught.value)
    refuse_partial(loader, limit_train_batches=1.0)
    refuse_partial(loader, limit_train_batches=5)  # as many as there are
