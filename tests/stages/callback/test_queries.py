"""Queries in the forms in which people hold test samples: a batch, a data set, a list of samples, one sample."""

from collections import UserDict
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from ifloo.errors import InputError
from ifloo.objective.forms import tensors_of
from ifloo.stages.callback.queries import Queries

X, Y = torch.arange(12.0).reshape(4, 3), torch.tensor([0, 1, 2, 1])


def query_batch(queries: Any, count: int, train: DataLoader[Any]) -> Any:
    """Returns the samples as one batch; as batches of one they must be the same."""
    found = Queries.of(queries, count, train).singles
    for k, one in enumerate(found.batches):
        if train.batch_sampler is not None:
            assert same(tensors(one), [x[k : k + 1] for x in tensors(found.whole)])
    return found.whole


def tensors(batch: Any) -> list[torch.Tensor]:
    return list(tensors_of(batch))


class Rows(Dataset[Any]):
    """Data set of samples that a function makes of a row."""

    def __init__(self, make: Any, rows: range) -> None:
        self.make, self.rows = make, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Any:
        return self.make(self.rows[i])


MAKES: dict[str, Any] = {
    "tuples": lambda i: (X[i], Y[i]),
    "tuples with numbers": lambda i: (X[i], int(Y[i])),
    "dicts": lambda i: {"x": X[i], "y": Y[i]},
    "dicts with texts": lambda i: {"x": X[i], "y": int(Y[i]), "name": f"row {i}"},
    "lists": lambda i: [X[i], Y[i]],
    "nested": lambda i: {"in": (X[i], X[i, 0]), "y": Y[i]},
}


def train_loader(make: Any) -> DataLoader[Any]:
    return DataLoader(Rows(make, range(2, 4)), batch_size=2)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


@pytest.mark.parametrize("name", MAKES)
def test_all_forms_of_the_same_samples_are_one_batch(name):
    make = MAKES[name]
    train, data = train_loader(make), Rows(make, range(3))
    expected = next(iter(DataLoader(data, batch_size=2)))
    given = [expected, data, [data[0], data[1], data[2]], (data[0], data[1], data[2]), DataLoader(data, batch_size=3)]
    for queries in given:
        assert same(query_batch(queries, 2, train), expected)
    assert same(query_batch([data[0]], 2, train), next(iter(DataLoader(data, batch_size=1))))


@pytest.mark.parametrize("name", MAKES)
def test_one_sample_is_a_batch_of_one(name):
    make = MAKES[name]
    expected = next(iter(DataLoader(Rows(make, range(1)))))
    assert same(query_batch(make(0), 8, train_loader(make)), expected)


def test_a_list_of_tensors_is_a_batch_or_a_data_set_as_the_training_data_are():
    pairs = train_loader(MAKES["tuples"])
    assert same(query_batch([X, Y], 8, pairs), [X, Y])
    alone = DataLoader(Rows(lambda i: X[i], range(2, 4)))
    assert same(query_batch([X[0], X[1], X[2]], 8, alone), X[:3])
    assert same(query_batch(X[:3], 8, alone), X[:3])


def test_more_than_the_model_needs_stays_a_batch():
    pairs = train_loader(MAKES["tuples"])
    assert same(query_batch((X, Y, torch.tensor([7, 5, 9, 2])), 8, pairs), (X, Y, torch.tensor([7, 5, 9, 2])))
    dicts = train_loader(MAKES["dicts"])
    ids = {"x": X, "y": Y, "sample_index": torch.arange(4)}
    assert same(query_batch(ids, 8, dicts), ids)


class Encoding(UserDict[str, torch.Tensor]):
    """A mapping that is no dict."""


def test_a_mapping_of_another_class_is_a_batch():
    def collate(samples: Any) -> Encoding:
        return Encoding(x=torch.stack([x for x, _ in samples]), y=torch.stack([y for _, y in samples]))

    train = DataLoader(TensorDataset(X, Y), batch_size=2, collate_fn=collate)
    found: Any = query_batch(Encoding(x=X, y=Y), 8, train)
    assert torch.equal(found["x"], X)
    assert torch.equal(query_batch([(X[0], Y[0])], 8, train)["x"], X[:1])  # type: ignore[index]


def test_a_loader_of_whole_batches():
    train = DataLoader([(X[:2], Y[:2]), (X[2:], Y[2:])], batch_size=None)  # type: ignore[arg-type]
    assert same(query_batch((X[:2], Y[:2]), 8, train), (X[:2], Y[:2]))


def test_texts_alone_are_no_batch():
    with pytest.raises(InputError, match="A batch must hold at least one tensor"):
        query_batch(["a", "b"], 8, train_loader(MAKES["tuples"]))
