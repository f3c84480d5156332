"""Plain data modules as the commands need them: ids, content, something to show, and what they are refused for."""

from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from ifloo.data import AdaptedData, MNISTDataModule, Samples, serves_attribution
from ifloo.errors import InputError
from ifloo.objective import sample_ids


class Rows(Dataset[dict[str, Tensor]]):
    def __init__(self, ids: list[int]) -> None:
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return {"idx": torch.tensor(self.ids[row]), "x": torch.full((3,), float(row)), "y": torch.tensor(row % 2)}


class Plain(L.LightningDataModule):
    def __init__(self, shift: float = 0.0) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.stages: list[str | None] = []

    def setup(self, stage: str | None = None) -> None:
        self.stages.append(stage)
        self.x = torch.arange(60.0).view(5, 1, 4, 3).repeat(1, 1, 1, 2) + self.hparams["shift"]
        self.y = torch.arange(5)

    def train_dataloader(self) -> Any:
        return DataLoader(TensorDataset(self.x, self.y), batch_size=2, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(TensorDataset(self.x[:3], self.y[:3]), batch_size=2)


def test_positions_are_the_ids():
    data = AdaptedData(Plain())
    assert data.train_set.ids.tolist() == [0, 1, 2, 3, 4]
    assert data.test_set.ids.tolist() == [0, 1, 2]
    batch = data.test_batch([2, 0])
    assert sample_ids(batch).tolist() == [2, 0]
    assert batch.batch[1].tolist() == [2, 0]


def test_each_stage_is_set_up_once():
    data = AdaptedData(Plain())
    for _ in range(2):
        data.setup("fit")
        _ = data.train_set, data.test_set
    assert data.data.stages == ["fit"]


def test_training_batches_carry_ids():
    data = AdaptedData(Plain())
    data.setup("fit")
    torch.manual_seed(0)
    seen = torch.cat([sample_ids(batch) for batch in data.train_dataloader()])
    assert sorted(seen.tolist()) == [0, 1, 2, 3, 4]
    assert all(torch.equal(batch.batch[1], batch.positions) for batch in data.train_dataloader())


def test_ids_of_the_samples_themselves():
    samples = Samples(DataLoader(Rows([7, 3, 11]), batch_size=2), "rows")
    assert samples.ids.tolist() == [7, 3, 11]
    assert samples.batch([11, 7]).batch["x"][:, 0].tolist() == [2.0, 0.0]
    assert samples.caption(3) == "1"
    assert samples.picture(3) is None


def test_a_picture_and_its_label():
    found = AdaptedData(Plain()).train_set
    assert found.caption(4) == "4"
    picture = found.picture(4)
    assert picture.dtype == np.uint8
    assert picture.shape == (4, 6)
    assert (picture.min(), picture.max()) == (0, 255)


def test_the_fingerprint_is_of_the_content():
    one, same, other = (AdaptedData(Plain(shift)) for shift in (0.0, 0.0, 1e-3))
    assert one.fingerprint() == same.fingerprint() != other.fingerprint()


def test_an_id_that_is_not_there():
    with pytest.raises(InputError) as caught:
        AdaptedData(Plain()).test_batch([1, 3])
    assert str(caught.value) == (
        "Plain.val_dataloader: no sample has id 3; 3 samples have ids within 0..2.\n  Choose another id."
    )


def test_an_id_twice():
    with pytest.raises(InputError) as caught:
        Samples(DataLoader(Rows([7, 3, 7]), batch_size=2), "rows")
    assert str(caught.value) == (
        "rows: 3 samples share 2 ids.\n"
        "  Give each sample an id of its own (key idx or sample_index, or the third item), or none at all."
    )


def test_no_test_samples():
    class OnlyTraining(L.LightningDataModule):
        def train_dataloader(self) -> Any:
            return DataLoader(Rows([0]))

    with pytest.raises(InputError) as caught:
        _ = AdaptedData(OnlyTraining()).test_set
    assert str(caught.value) == (
        "OnlyTraining has neither test_dataloader nor val_dataloader: there is no prediction to explain.\n"
        "  Write one of them; its samples are the tests, by their id or position."
    )


def test_several_loaders():
    class Two(Plain):
        def train_dataloader(self) -> Any:
            return [super().train_dataloader()] * 2

    data = AdaptedData(Two())
    data.setup("fit")
    with pytest.raises(InputError) as caught:
        data.train_dataloader()
    assert str(caught.value) == (
        "Two.train_dataloader must give one torch DataLoader over a fixed set of samples; it gave list.\n"
        "  Return a single DataLoader."
    )


def test_what_serves_itself_is_not_wrapped():
    assert serves_attribution(MNISTDataModule())
    assert not serves_attribution(Plain())
