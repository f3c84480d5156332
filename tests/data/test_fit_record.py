"""The record of a fit's data: what is stored in a checkpoint, and what it tells apart."""

import random

import numpy as np
import pytest
import torch
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
    random_split,
)

from ifloo.data import FitRecord
from ifloo.data.fit_record import KEY, content_fingerprint
from ifloo.data.subset_rows import subset_rows, with_rows
from ifloo.errors import InputError


def tensors(n=40, seed=0):
    g = torch.Generator().manual_seed(seed)
    return TensorDataset(torch.randn(n, 3, generator=g), torch.randint(2, (n,), generator=g))


class Files(Dataset):
    """Samples that are made when they are read, as decoded images are."""

    def __init__(self, n=300, noise=0.0):
        self.n, self.noise, self.reads = n, noise, 0

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        self.reads += 1
        x = torch.arange(4.0) * i
        noise = torch.randn(4) + float(np.random.normal()) + random.random()
        return {"x": x + self.noise * noise, "y": i % 3}


class Wrapper(Dataset):
    """A dataset with a transform around another, as people put one around a random split."""

    def __init__(self, inner):
        self.inner = inner

    def __len__(self):
        return len(self.inner)

    def __getitem__(self, i):
        x, y = self.inner[i]
        return 2 * x, y


class OwnGenerator(Files):
    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def __getitem__(self, i):
        return torch.randn(3, generator=self.generator)


def reread(record, tmp_path):
    torch.save({KEY: record.record()}, tmp_path / "c.ckpt")
    return FitRecord.read(torch.load(tmp_path / "c.ckpt", weights_only=True))


def test_a_record_survives_a_checkpoint_of_plain_values(tmp_path):
    part, rest = random_split(tensors(), [30, 10], torch.Generator().manual_seed(1))
    record = FitRecord.of(DataLoader(part, shuffle=True), {"val": DataLoader(rest)}, limit_train_batches=0.5)
    found = reread(record, tmp_path)
    assert (found.fingerprint, found.n, found.rows_read) == (record.fingerprint, 30, 30)
    assert found.behind == (("TensorDataset", 40),)
    assert (found.sampler, found.limit_train_batches, found.overfit_batches) == ("RandomSampler", 0.5, 0.0)
    assert [rows.tolist() for rows in found.subsets] == [list(part.indices)]
    assert [rows.tolist() for rows in found.evaluation["val"]] == [list(rest.indices)]


def test_a_checkpoint_without_a_record_has_none():
    assert FitRecord.read({"state_dict": {}}) is None


def test_a_damaged_record_is_wrong_input():
    with pytest.raises(InputError, match="record of the training data"):
        FitRecord.read({KEY: {"n": 3}})


def test_other_content_other_rows_and_another_order_have_other_fingerprints():
    def of(dataset):
        return content_fingerprint(DataLoader(dataset))[0]

    base = tensors()
    assert of(base) == of(tensors()) == of(Subset(base, range(40)))
    changed = tensors()
    changed.tensors[0][17, 2] += 1e-3
    assert len({of(base), of(changed), of(Subset(base, range(39))), of(Subset(base, [1, 0, *range(2, 40)]))}) == 4


def test_data_that_are_decoded_are_read_on_rows_spread_over_all_of_them():
    data = Files(10_000)
    fingerprint, read = content_fingerprint(DataLoader(data, batch_size=50))
    assert read == 256
    assert data.reads <= 256 + 2 * 16
    assert (fingerprint, read) == content_fingerprint(DataLoader(Files(10_000), batch_size=7))


def test_augmented_samples_have_a_fingerprint_and_random_states_stay():
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    first = content_fingerprint(DataLoader(Files(noise=1.0)))
    drawn = torch.rand(1).item(), np.random.rand(), random.random()
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    assert drawn == (torch.rand(1).item(), np.random.rand(), random.random())
    torch.manual_seed(4)
    assert content_fingerprint(DataLoader(Files(noise=1.0))) == first
    assert first[0] is not None
    assert first != content_fingerprint(DataLoader(Files(noise=2.0)))


def test_samples_drawn_by_a_generator_of_their_own_have_no_fingerprint():
    assert FitRecord.of(DataLoader(OwnGenerator())).fingerprint is None


def test_a_sampler_within_a_batch_sampler_is_recorded():
    batches = torch.utils.data.BatchSampler(WeightedRandomSampler(torch.ones(40), 40), 8, False)
    assert FitRecord.of(DataLoader(tensors(), batch_sampler=batches)).sampler == "WeightedRandomSampler"


@pytest.mark.parametrize("wrap", [lambda d: d, Wrapper, lambda d: ConcatDataset([Wrapper(d), tensors(5)])])
def test_rows_of_one_split_are_applied_to_another(wrap):
    def of(seed):
        part, _ = random_split(tensors(), [30, 10], torch.Generator().manual_seed(seed))
        return wrap(Subset(part, range(20)))

    fitted, now = of(1), of(2)
    before = [rows.tolist() for rows in subset_rows(now)]
    applied = with_rows(now, subset_rows(fitted))
    assert content_fingerprint(DataLoader(applied)) == content_fingerprint(DataLoader(fitted))
    assert [rows.tolist() for rows in subset_rows(now)] == before  # the user's own dataset stays


def test_rows_that_do_not_exist_are_not_applied():
    with pytest.raises(ValueError, match="rows up to 50"):
        with_rows(Subset(tensors(), range(3)), [torch.tensor([50])])
    with pytest.raises(ValueError, match="1 Subset"):
        with_rows(Subset(tensors(), range(3)), [])
