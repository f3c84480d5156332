"""The loader of the tests, chosen among several and held to the form of the training batches."""

import pickle
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader, TensorDataset

from ifloo.data import AdaptedData
from ifloo.errors import InputError


def loader(*tensors: Any, n: int = 4) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*(tensors or (torch.zeros(n, 2), torch.arange(n)))), batch_size=2)


class Data(L.LightningDataModule):
    """Gives these loaders."""

    def __init__(self, tests: Any, train: Any = None) -> None:
        super().__init__()
        self.tests, self.train = tests, train

    def train_dataloader(self) -> Any:
        return loader() if self.train is None else self.train

    def val_dataloader(self) -> Any:
        return self.tests


class Rows(torch.utils.data.Dataset[Any]):
    """A dataset of the same row, four times."""

    def __init__(self, row: Any) -> None:
        self.row = row

    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> Any:
        return self.row


def of(row: Any) -> DataLoader[Any]:
    return DataLoader(Rows(row), batch_size=2)


@pytest.mark.parametrize("pack", [lambda x: x, CombinedLoader], ids=["plain", "combined"])
def test_a_loader_is_chosen_by_index_or_name(pack):
    pair = [loader(n=3), loader(n=5)]
    assert len(AdaptedData(Data(pack(pair)), test_loader=1).test_set) == 5
    assert len(AdaptedData(Data(pack(pair)), test_loader="0").test_set) == 3
    assert len(AdaptedData(Data(pack({"ood": pair[1], "id": pair[0]})), test_loader="id").test_set) == 3
    assert len(AdaptedData(Data(pack({"id": pair[0]}))).test_set) == 3


def test_without_a_choice_the_loaders_are_listed():
    with pytest.raises(InputError, match=r"Data\.val_dataloader gives 2 loaders \(id, ood\)[\s\S]*--data_loader"):
        _ = AdaptedData(Data({"id": loader(), "ood": loader()})).test_set
    with pytest.raises(InputError, match=r"has no loader 2; it gives 0, 1"):
        _ = AdaptedData(Data([loader(), loader()]), test_loader=2).test_set


def test_an_empty_set_is_named():
    with pytest.raises(InputError, match=r"Data\.val_dataloader holds no sample"):
        _ = AdaptedData(Data(loader(n=0))).test_set


X, Y = torch.zeros(2), torch.tensor(1)


@pytest.mark.parametrize(
    ("training", "test", "text"),
    [
        ((X, Y), (X,), "the batch has 1 item, in training 2 items"),
        ((X, Y), {"x": X, "y": Y}, "the batch is a dictionary, in training a list"),
        ({"x": X, "y": Y}, {"x": X}, "the batch lacks 'y'"),
        ({"x": X, "y": {"a": Y, "b": Y}}, {"x": X, "y": {"a": Y}}, "'y' lacks 'b'"),
        ({"x": X, "y": Y}, {"x": "text", "y": Y}, "'x' is a list, in training a tensor"),
    ],
)
def test_tests_of_another_form_are_named(training, test, text):
    data = AdaptedData(Data(of(test), of(training)))
    for _ in range(2):  # the second time, too
        with pytest.raises(InputError, match=r"Data\.val_dataloader gives batches of another form") as refused:
            _ = data.test_set
        assert text in str(refused.value)


@pytest.mark.parametrize(
    ("training", "test"),
    [
        ({"x": X, "y": Y}, {"x": X, "y": Y, "name": "more"}),
        ((X, Y), (X, Y, X)),
        ({"tokens": torch.zeros(3)}, {"tokens": torch.zeros(5)}),
    ],
    ids=["more keys", "more items", "other widths"],
)
def test_tests_may_have_more_parts(training, test):
    assert len(AdaptedData(Data(of(test), of(training))).test_set) == 4


class Whole(L.LightningModule):
    """A module that holds its loaders itself."""

    def train_dataloader(self) -> Any:
        return loader(n=7)

    def val_dataloader(self) -> Any:
        return loader(n=3)


def test_loaders_within_a_module_are_data():
    data = AdaptedData(Whole())
    assert (len(data.train_set), len(data.test_set)) == (7, 3)
    assert dict(data.hparams) == {}
    assert len(pickle.loads(pickle.dumps(data)).train_set) == 7


def test_a_data_module_shares_the_trainer_of_its_adapter_and_travels_without():
    own = Data(loader())
    data, trainer = AdaptedData(own), L.Trainer(logger=False, accelerator="cpu")
    data.trainer = trainer
    assert own.trainer is trainer
    copied = pickle.loads(pickle.dumps(data))
    assert copied.trainer is None
    assert copied.data.trainer is None
    assert own.trainer is trainer


def test_state_of_a_data_module_is_its_own():
    class Stateful(Data):
        def state_dict(self) -> dict[str, Any]:
            return {"seed": 3}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            self.seed = state_dict["seed"]

    data = AdaptedData(Stateful(loader()))
    data.load_state_dict(data.state_dict())
    assert data.data.seed == 3
