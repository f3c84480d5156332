"""Samples that scores read once: in memory, in a file, on worker processes, and augmented."""

import os
import pickle

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from ifloo.data import AdaptedData
from ifloo.data.kept_samples import ReadSettings, SampleReads
from ifloo.data.sample_store import SampleStore, available_memory, packed, unpacked
from ifloo.errors import InputError, command_line
from ifloo.objective import sequential, to_device
from ifloo.objective.loaders import training_dataset, unwrap_loader
from ifloo.objective.singles import Drawn


class Images(Dataset):
    """Samples that are made when they are read, with an augmentation, and that count their reads."""

    def __init__(self, n=50, noise=0.0, log=None):
        self.n, self.noise, self.log = n, noise, log

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        if i >= self.n:
            raise IndexError(i)
        if self.log:
            with open(self.log, "a") as file:
                print(i, file=file)
        return {"x": torch.full((2, 3), float(i)) + self.noise * torch.randn(2, 3), "y": i % 3, "name": f"image {i}"}


class Data(L.LightningDataModule):
    def __init__(self, dataset, **how):
        super().__init__()
        self.dataset, self.how = dataset, how

    def train_dataloader(self):
        return DataLoader(self.dataset, batch_size=8, shuffle=True, **self.how)

    def val_dataloader(self):
        return DataLoader(self.dataset, batch_size=5)


def reads(log):
    rows = [int(line) for line in log.read_text().split()] if log.exists() else []
    return torch.bincount(torch.tensor(rows, dtype=torch.int64), minlength=50)


def passes(data):
    data.setup("fit")
    found = [torch.cat([b["x"] for b in sequential(data.train_dataloader(), 20)]) for _ in range(3)]
    data.fingerprint()
    assert all(torch.equal(one, found[0]) for one in found)
    return found[0]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("share", [0.25, 0.0])
def test_every_pass_of_scores_together_reads_a_sample_once(tmp_path, num_workers, share):
    log = tmp_path / "log"
    settings = ReadSettings(share=share, folder=tmp_path / "outputs")
    data = AdaptedData(Data(Images(log=log), num_workers=num_workers), reads=settings)
    x = passes(data)
    assert torch.equal(x[:, 0, 0], torch.arange(50.0))
    assert reads(log).max() == 1 == reads(log).min()
    store = data._reads._store
    assert (store.bytes_in_file > 0, store.bytes_in_memory > 0) == (share == 0, share > 0)
    assert list((tmp_path / "outputs").glob("*")) == []  # the file has no name and vanishes with the process


def test_training_reads_the_users_own_dataset():
    data = AdaptedData(Data(Images(noise=1.0)))
    data.setup("fit")
    first, second = (torch.cat([b.batch["x"] for b in data.train_dataloader()]) for _ in range(2))
    assert not torch.equal(first.sort(0)[0], second.sort(0)[0])  # the augmentation of training stays random
    assert training_dataset(data.train_dataloader()) is data.data.dataset


def test_scores_read_one_draw_of_an_augmented_sample_the_same_in_every_process():
    torch.manual_seed(0)
    x = passes(AdaptedData(Data(Images(noise=1.0))))
    torch.manual_seed(1)
    assert torch.equal(passes(AdaptedData(Data(Images(noise=1.0), num_workers=2))), x)
    drawn = (x - torch.arange(50.0).reshape(50, 1, 1)).flatten()
    # 300 standard normal draws: mean 0 ± 5 / sqrt(300), variance 1 ± 5 sqrt(2 / 300)
    assert abs(float(drawn.mean())) < 0.29
    assert abs(float(drawn.var()) - 1) < 0.41
    assert len(drawn.unique()) == 300


def test_samples_do_not_change_when_a_reader_changes_them():
    loader = SampleReads(ReadSettings()).of(DataLoader(Images()), "train")
    dataset, _ = unwrap_loader(loader)
    for _ in range(2):
        sample = dataset[3]
        assert torch.equal(sample["x"], torch.full((2, 3), 3.0))
        sample["x"].zero_()


def test_several_draws_are_read_together():
    data = AdaptedData(Data(Images(noise=1.0)), reads=ReadSettings(draws=3))
    data.setup("fit")
    batch = next(iter(sequential(data.train_dataloader(), 20)))
    assert isinstance(batch, Drawn)
    assert len({float(one["x"][0, 0, 0]) for one in batch.draws}) == 3
    one = passes_of_one_draw()
    assert torch.equal(batch.draws[0]["x"], one[:20])
    assert isinstance(to_device(batch, torch.device("cpu"), torch.float64), Drawn)


def passes_of_one_draw():
    return passes(AdaptedData(Data(Images(noise=1.0))))


def test_tensors_in_memory_are_read_where_they_are():
    own = TensorDataset(torch.arange(5.0))
    loader = DataLoader(own)
    assert SampleReads(ReadSettings(draws=3)).of(loader, "train") is loader


def test_another_number_of_samples_at_another_call():
    kept = SampleReads(ReadSettings())
    kept.of(DataLoader(Images(5)), "train")
    with pytest.raises(InputError, match="had 5 samples when they were first read, and have 6 now"):
        kept.of(DataLoader(Images(6)), "train")


@pytest.mark.parametrize(
    ("wrong", "flag", "message"),
    [
        ({"draws": 0}, "--adapt.draws", "`draws` is 0; it must be 1 or more."),
        ({"share": -0.1}, "--adapt.memory_share", "`share` is -0.1; it must lie within 0 and 1."),
        ({"share": 1.5}, "--adapt.memory_share", "`share` is 1.5; it must lie within 0 and 1."),
    ],
)
def test_settings_out_of_range(wrong, flag, message):
    with pytest.raises(InputError) as caught:
        ReadSettings(**wrong)
    assert str(caught.value) == message
    with command_line():
        assert str(caught.value).startswith(f"{flag} is ")


@pytest.mark.parametrize(
    "value",
    [
        torch.tensor(2.5),
        torch.zeros(0, 3),
        torch.arange(6).reshape(2, 3).T,
        torch.tensor([True, False]),
        torch.tensor([1 + 2j]).conj(),
        torch.ones(3, dtype=torch.bfloat16),
        torch.eye(3).to_sparse(),
        torch.nn.Parameter(torch.ones(2)),
    ],
)
def test_tensors_come_back_as_they_were(value):
    found = unpacked(packed({"x": value, "name": "a"}))
    assert found["name"] == "a"
    assert type(found["x"]) is type(value)
    assert (found["x"].dtype, found["x"].shape) == (value.dtype, value.shape)
    assert torch.equal(found["x"].to_dense(), value.to_dense())


def test_objects_that_cannot_be_pickled_are_kept_as_they_are():
    store, sample = SampleStore(), {"x": torch.ones(2), "f": lambda: 0}
    store.put("a", sample)
    assert store.get("a") is sample


def test_a_store_sent_to_another_process_starts_empty():
    store = SampleStore()
    store.put("a", 1)
    assert "a" not in pickle.loads(pickle.dumps(store))


def test_the_available_memory_is_no_more_than_there_is():
    assert 0 < available_memory() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_a_data_module_sent_to_another_process_reads_by_itself():
    data = AdaptedData(Data(Images(noise=1.0)))
    x = passes(data)
    sent = pickle.loads(pickle.dumps(data))
    assert sent._reads._store.bytes_in_memory == 0
    assert torch.equal(passes(sent), x)


def test_the_fingerprint_is_of_the_data_and_not_of_the_number_of_draws():
    one, three = (AdaptedData(Data(Images(noise=1.0)), reads=ReadSettings(draws=k)) for k in (1, 3))
    assert one.fingerprint() == three.fingerprint()
