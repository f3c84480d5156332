"""Plain data modules as the commands need them: ids, content, something to show, and what they are refused for."""

from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

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


def test_numbers_that_repeat_are_no_ids():
    samples = Samples(DataLoader(Rows([7, 3, 7]), batch_size=2), "rows")
    assert samples.ids.tolist() == [0, 1, 2]
    assert samples.batch([2, 0]).batch["x"][:, 0].tolist() == [2.0, 0.0]


class Third(Plain):
    """The third item is a number of its own, `7 - position`."""

    def train_dataloader(self) -> Any:
        return DataLoader(TensorDataset(self.x, self.y, 7 - torch.arange(5)), batch_size=2, shuffle=True)


def test_the_third_item_is_an_id_where_a_setting_says_so():
    said, plain = AdaptedData(Third(), ids="third"), AdaptedData(Third())
    for data, ids in ((said, [7, 6, 5, 4, 3]), (plain, [0, 1, 2, 3, 4])):
        data.setup("fit")
        assert data.train_set.ids.tolist() == ids
        drawn = [
            (i, y)
            for b in data.train_dataloader()
            for i, y in zip(sample_ids(b).tolist(), b.batch[1].tolist(), strict=True)
        ]
        assert sorted(drawn) == sorted(zip(ids, range(5), strict=True))
    assert said.train_set.batch([4]).batch[1].tolist() == [3]
    assert said.fingerprint() != plain.fingerprint()
    with pytest.raises(InputError) as caught:  # the test samples have no third item
        _ = said.test_set
    assert str(caught.value).startswith(
        "Third.val_dataloader: ids third: the third item of a batch is not one whole number per sample.\n"
    )


class Split(Plain):
    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        whole = TensorDataset(self.x, self.y)
        self.parts = Subset(Subset(whole, [4, 2, 0, 3]), [3, 0, 1]), Subset(whole, [1])

    def train_dataloader(self) -> Any:
        return DataLoader(self.parts[0], batch_size=2, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(self.parts[1], batch_size=2)


def test_the_id_of_a_sample_of_a_subset_is_its_row_in_the_whole():
    data = AdaptedData(Split())
    data.setup("fit")
    assert data.train_set.ids.tolist() == [3, 4, 2]
    assert data.test_set.ids.tolist() == [1]
    assert data.train_set.batch([2, 3]).batch[1].tolist() == [2, 3]
    assert all(torch.equal(batch.batch[1], batch.positions) for batch in data.train_dataloader())
    with pytest.raises(InputError) as caught:
        data.train_set.batch([0])
    assert str(caught.value) == (
        "Split.train_dataloader: no sample has id 0; 3 samples have ids within 2..4.\n  Choose another id."
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


def test_the_caption_is_the_label_where_a_key_says_so():
    rows = [
        {"length": torch.tensor(7), "label": torch.tensor(2)},
        {"length": torch.tensor(5), "label": torch.tensor(1)},
    ]

    class Dicts(L.LightningDataModule):
        def train_dataloader(self):
            return DataLoader(rows)

        def val_dataloader(self):
            return DataLoader(rows)

    assert [AdaptedData(Dicts()).test_set.caption(i) for i in range(2)] == ["2", "1"]
