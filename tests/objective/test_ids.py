"""What is taken for the id of a sample: keys, a third item, positions; and that all samples decide, not the first."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset, random_split

from ifloo.errors import InputError
from ifloo.objective import Identified, TrainingData, query_ids, sequential
from ifloo.objective.id_rule import IdReader, IdRule, _noted, rows_of
from ifloo.objective.ids import decide, identified_queries
from ifloo.objective.loaders import identified, rule_behind

CPU = torch.device("cpu")
N = 12
X = torch.arange(float(N)).unsqueeze(1)


class Rows(Dataset[Any]):
    """Samples made by a function of the position; counts how often each is read."""

    def __init__(self, sample: Any, n: int = N) -> None:
        self.sample, self.n, self.read = sample, n, [0] * n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> Any:
        self.read[i] += 1
        return self.sample(i)


def keyed(value: Any, key: str = "idx") -> Rows:
    return Rows(lambda i: {"x": X[i], key: value(i)})


def third(value: Any) -> Rows:
    return Rows(lambda i: (X[i], torch.tensor(i % 2), value(i)))


@pytest.fixture(autouse=True)
def notes(caplog: pytest.LogCaptureFixture) -> Any:
    _noted.clear()
    return lambda: [record.getMessage() for record in caplog.records]


POSITIONS = list(range(N))
AS_DATA = {
    "token ids": (keyed(lambda i: torch.tensor([i, 0, 1]), "idx"), 0),
    "texts": (keyed(lambda i: f"row {i}"), 0),
    "numbers with a fraction": (keyed(lambda i: torch.tensor(i / 2)), 0),
    "true and false": (keyed(lambda i: torch.tensor(i == 0)), 0),
    "numbers that repeat, in the last sample alone": (keyed(lambda i: torch.tensor(i % (N - 1))), 1),
    "a length, third": (third(lambda i: torch.tensor(i % 5 + 1)), 1),
    "a unique target, third": (third(lambda i: torch.tensor(100 - i)), 1),
    "the positions, third": (third(torch.tensor), 0),
    "a third item of floats": (third(lambda i: torch.tensor(float(i))), 0),
}


@pytest.mark.parametrize(("data", "noted"), AS_DATA.values(), ids=AS_DATA)
def test_anything_else_is_data(data, noted, notes):
    loader = DataLoader(data, batch_size=5)
    assert decide(data, loader.collate_fn)[1].tolist() == POSITIONS
    assert len(notes()) == noted
    _noted.clear()
    found = TrainingData(sequential(loader, 5), CPU, torch.float32)
    assert (found.ids.tolist(), found.id_rule.source) == (POSITIONS, "positions")
    assert len(notes()) == 2 * noted
    assert [sample for _, batch in found.with_ids() for sample in _x(batch)] == X.flatten().tolist()
    shuffled = DataLoader(data, batch_size=5, shuffle=True)
    drawn = [pair for b in identified(shuffled) for pair in zip(b.positions.tolist(), _x(b.batch), strict=True)]
    assert sorted(drawn) == [(i, float(i)) for i in POSITIONS]


def _x(batch: Any) -> list[float]:
    x: Tensor = batch["x"] if isinstance(batch, dict) else batch[0]
    return x.flatten().tolist()


@pytest.mark.parametrize("key", ["idx", "sample_index"])
@pytest.mark.parametrize("value", [lambda i: 5 - i, lambda i: torch.tensor(7 * i - 1, dtype=torch.int32)])
def test_a_key_of_unique_whole_numbers_is_the_id(key, value, notes):
    data = keyed(value, key)
    expected = [int(value(i)) for i in range(N)]
    loader = DataLoader(data, batch_size=5)
    assert decide(data, loader.collate_fn)[1].tolist() == expected
    found = TrainingData(sequential(loader, 5), CPU, torch.float32, cache_bytes=0)
    assert (found.ids.tolist(), found.id_rule.source) == (expected, key)
    assert [i for ids, _ in found.with_ids() for i in ids.tolist()] == expected
    assert notes() == []


def test_the_second_key_is_the_id_where_the_first_holds_data():
    data = Rows(lambda i: {"x": X[i], "idx": torch.tensor(i % 3), "sample_index": 50 - i})
    found = TrainingData(sequential(DataLoader(data), 5), CPU, torch.float32)
    assert found.ids.tolist() == [50 - i for i in range(N)]
    drawn = [
        pair for b in identified(DataLoader(data, batch_size=4, shuffle=True)) for pair in zip(*_pairs(b), strict=True)
    ]
    assert sorted(drawn) == sorted((50 - i, float(i)) for i in range(N))


def _pairs(batch: Identified) -> tuple[list[int], list[float]]:
    return batch.positions.tolist(), _x(batch.batch)


def test_a_third_item_that_is_named_is_the_id(notes):
    data = third(lambda i: torch.tensor(100 - i))
    loader = DataLoader(data, batch_size=5, shuffle=True)
    expected = [100 - i for i in range(N)]
    found = TrainingData(sequential(loader, 5, ids="third"), CPU, torch.float32)
    assert (found.ids.tolist(), found.id_rule.source) == (expected, "third")
    wrapped = identified(loader, "third")
    drawn = [pair for b in wrapped for pair in zip(*_pairs(b), strict=True)]
    assert sorted(drawn) == sorted(zip(expected, X.flatten().tolist(), strict=True))
    assert TrainingData(sequential(wrapped, 5), CPU, torch.float32).ids.tolist() == expected
    assert notes() == []


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (lambda i: torch.tensor(i % 5), "Sample ids must be unique; 5 occur more than once, the first is 0."),
        (lambda i: torch.tensor(i / 2), "ids third: the third item of a batch is not one whole number per sample."),
    ],
)
def test_a_third_item_that_is_named_and_is_none_is_refused(value, text):
    with pytest.raises(InputError) as caught:
        TrainingData(sequential(DataLoader(third(value)), 5, ids="third"), CPU, torch.float32)
    assert str(caught.value).splitlines()[0] == text


def test_positions_can_be_named(notes):
    data = keyed(lambda i: 40 - i)
    assert decide(data, DataLoader(data).collate_fn, "positions")[1].tolist() == POSITIONS
    found = TrainingData(sequential(DataLoader(data), 5, ids="positions"), CPU, torch.float32)
    assert found.ids.tolist() == POSITIONS
    assert notes() == []


def test_through_subsets_an_id_is_the_row_of_the_innermost_dataset():
    inner = TensorDataset(X)
    outer = Subset(Subset(inner, [11, 3, 7, 0]), [2, 0, -1])
    assert rows_of(outer).tolist() == [7, 11, 0]
    found = TrainingData(sequential(DataLoader(outer), 2), CPU, torch.float32)
    assert found.ids.tolist() == [7, 11, 0]
    assert torch.cat([batch[0].flatten() for batch in found]).tolist() == [7.0, 11.0, 0.0]
    part = TrainingData(sequential(DataLoader(outer), 2, slice(1, 3)), CPU, torch.float32)
    assert part.ids.tolist() == [11, 0]
    assert rows_of(inner) is None


def test_rows_of_joined_datasets_and_of_a_random_split():
    joined = ConcatDataset([TensorDataset(X[:5]), TensorDataset(X[5:])])
    parts = random_split(joined, [8, 4], generator=torch.Generator().manual_seed(0))
    for part in parts:
        found = TrainingData(sequential(DataLoader(part), 3), CPU, torch.float32)
        assert torch.cat([batch[0].flatten() for batch in found]).tolist() == found.ids.tolist()
        for batch in identified(DataLoader(part, batch_size=3, shuffle=True)):
            assert batch.batch[0].flatten().tolist() == batch.positions.tolist()
    assert rows_of(ConcatDataset(list(parts))) is None  # the whole that the user joined is their data set


def test_a_row_that_a_subset_holds_twice_is_two_samples():
    twice = Subset(TensorDataset(X), [3, 3, 5])
    assert TrainingData(sequential(DataLoader(twice), 2), CPU, torch.float32).ids.tolist() == [0, 1, 2]


def test_ids_within_the_samples_go_before_rows_of_a_subset():
    part = Subset(keyed(lambda i: 40 - i), [4, 2])
    assert TrainingData(sequential(DataLoader(part), 2), CPU, torch.float32).ids.tolist() == [36, 38]


def test_samples_are_read_once_for_the_ids_that_they_carry_and_not_for_positions():
    carried, plain = keyed(lambda i: 40 - i), Rows(lambda i: (X[i], torch.tensor(1)))
    for data, read in ((carried, 1), (plain, 0)):
        loader = DataLoader(data)
        decide(data, loader.collate_fn)
        assert data.read[5] == read
        found = TrainingData(sequential(loader, 5), CPU, torch.float32)
        assert data.read[5] == read + 1
        assert TrainingData(sequential(found.loader, 3), CPU, torch.float32).id_rule == found.id_rule


def test_a_loader_passes_its_rule_on():
    loader = DataLoader(third(lambda i: torch.tensor(100 - i)), batch_size=5)
    wrapped = identified(loader, "third")
    assert identified(wrapped) is wrapped
    assert rule_behind(sequential(wrapped, 3)).source == "third"
    assert rule_behind(sequential(sequential(wrapped, 3), 2)).source == "third"
    assert rule_behind(loader).source == "auto"


def test_queries():
    x, y = torch.zeros(3, 2), torch.zeros(3)
    assert query_ids({"x": x, "idx": torch.tensor([4, -1, 2])}).tolist() == [4, -1, 2]
    assert query_ids({"x": x, "idx": torch.tensor([1, 0, 0])}).tolist() == [0, 1, 2]
    assert query_ids((x, y, torch.tensor([5, 6, 9]))).tolist() == [0, 1, 2]
    named = identified_queries((x, y, torch.tensor([5, 6, 9])), IdRule("third"))
    assert query_ids(named).tolist() == [5, 6, 9]
    with pytest.raises(InputError, match=r"^Sample ids must be unique; 1 occur more than once, the first is 0\."):
        identified_queries((x, y, torch.tensor([1, 0, 0])), IdRule("third"))


def test_a_reader_without_samples_has_no_ids():
    assert IdReader(IdRule()).decided()[1].tolist() == []
