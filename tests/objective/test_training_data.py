"""All n samples, once each, whatever form they come in; and what is refused at the door."""

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from ifloo.errors import InputError
from ifloo.objective import Identified, SampleWeights, TrainingData, batch_size, sample_ids, sequential
from ifloo.objective.batches import concatenate_chunks
from tests.problems import Ridge

CPU = torch.device("cpu")


def _data(*batches, **how):
    return TrainingData(list(batches), CPU, torch.float64, **how)


def _refusal(*batches):
    with pytest.raises(InputError) as caught:
        _data(*batches)
    return str(caught.value)


def test_nothing():
    assert _refusal() == "The training data hold no sample."


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_finite(value):
    x = torch.zeros(3, 2)
    x[1, 0] = value
    assert _refusal({"x": torch.zeros(3, 2)}, {"x": x}) == (
        "The training data hold NaN or infinity: batch 1, row 1, a tensor of shape [3, 2].\n"
        "  Clean the data; no score can be computed from them."
    )


def test_ids_twice():
    batch = Identified({"x": torch.zeros(2, 1)}, torch.tensor([4, 7]))
    assert _refusal(batch, batch) == (
        "Sample ids must be unique; 2 occur more than once, the first is 4.\n"
        "  Give each training sample its own id (key `idx` or `sample_index`), or none at all."
    )


def test_no_tensor_with_rows():
    assert _refusal({"scale": torch.tensor(1.0)}) == (
        "A batch must hold at least one tensor [b, ...]; got dict without any."
    )


def test_dataset_without_length():
    class Endless(Dataset):
        def __getitem__(self, i):
            return torch.zeros(2)

    with pytest.raises(InputError) as caught:
        sequential(DataLoader(Endless()), 10)
    assert str(caught.value) == (
        "Attribution needs a map-style dataset (with __len__ and __getitem__); got Endless, which has no __len__.\n"
        "  Let __len__ give the number of its samples."
    )


def test_iterable_dataset():
    class Stream(IterableDataset):
        def __iter__(self):
            yield from range(3)

    with pytest.raises(InputError) as caught:
        sequential(DataLoader(Stream()), 10)
    assert str(caught.value) == (
        "Attribution needs a map-style dataset (with __len__ and __getitem__); got Stream, an IterableDataset.\n"
        "  Give a dataset whose __getitem__ returns the sample at a position."
    )


def test_a_loader_that_shuffles_while_data_are_read_anew():
    """Kept in memory one order is as good as another; read anew, ids and samples would part silently."""
    problem = Ridge.make()
    loader = DataLoader(
        problem.loader().dataset, batch_size=40, shuffle=True, generator=torch.Generator().manual_seed(0)
    )
    data = TrainingData(loader, CPU, torch.float64, cache_bytes=0)
    with pytest.raises(InputError) as caught:
        list(data.with_ids())
    assert str(caught.value).startswith("The training data came in another order than at the first pass: ids [")
    assert str(caught.value).endswith("Turn shuffling off; `sequential(loader, size)` gives a fixed order.")


def test_sequential_undoes_shuffling():
    loader = DataLoader(Ridge.make().loader().dataset, batch_size=3, shuffle=True)
    assert TrainingData(sequential(loader, 11), CPU, torch.float64).ids.tolist() == list(range(40))


@pytest.mark.parametrize("cache_bytes", [0, 300, 1 << 30])
def test_samples_by_position(cache_bytes):
    problem = Ridge.make()
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    data = problem.data(batch_size=7, order=order, cache_bytes=cache_bytes)
    positions = torch.tensor([39, 0, 7, 7, 6, 20])
    batch = data.sample(positions)
    assert torch.equal(batch["idx"], order[positions])
    assert torch.equal(batch["x"], problem.x[order[positions]])


def test_draws_are_uniform_over_all():
    drawn = Ridge.make().data().draw(40_000, torch.Generator().manual_seed(2))
    counts = torch.bincount(drawn.ids, minlength=40).double()
    # χ² of 39 degrees of freedom: 39 ± 9; five of these
    assert 0 < float(((counts - 1000).square() / 1000).sum()) < 84
    assert drawn.n == 40_000


@pytest.mark.parametrize(
    ("batch", "ids"),
    [
        ({"x": torch.zeros(2, 3), "idx": torch.tensor([5, 6])}, [5, 6]),
        ({"x": torch.zeros(2, 3), "sample_index": torch.tensor([5, 6], dtype=torch.int32)}, [5, 6]),
        ((torch.zeros(2, 3), torch.zeros(2), torch.tensor([5, 6])), None),  # data, unless a rule says otherwise
        ([torch.zeros(2, 3), torch.zeros(2), torch.tensor([5, 6])], None),
        ((torch.zeros(2, 3), torch.zeros(2)), None),
        ((torch.zeros(2, 3), torch.zeros(2), torch.tensor([0.5, 0.6])), None),
        (torch.zeros(2, 3), None),
    ],
)
def test_ids_of_a_batch(batch, ids):
    found = sample_ids(batch)
    assert (found.tolist() if found is not None else None) == ids
    assert batch_size(batch) == 2


@pytest.mark.parametrize(
    ("ids", "n", "message"),
    [
        ([3, 3], 5, "Each id can be removed once, got [3, 3]."),
        ([0, 1], 2, "Removing 2 of 2 samples leaves nothing to train on."),
    ],
)
def test_removals_refused(ids, n, message):
    with pytest.raises(InputError) as caught:
        SampleWeights.removing(ids, "drop", n)
    assert str(caught.value) == message


def test_chunks_are_joined_in_order_and_each_is_reported():
    whole, seen = torch.arange(14.0).view(2, 7), []
    found = concatenate_chunks(iter(whole.split(3, dim=1)), 7, lambda done, total: seen.append((done, total)))
    assert torch.equal(found, whole)
    assert seen == [(3, 7), (6, 7), (7, 7)]
