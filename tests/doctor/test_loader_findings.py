"""What a training loader shows: whole where it is, silent where it is not."""

import lightning as L
import pytest
import torch
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
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

from ifloo.doctor.finding import Finding, Severity
from ifloo.doctor.loader_findings import hook_findings, loader_findings
from ifloo.objective.loaders import identified
from ifloo.objective.seeded_draws import SeededDraws
from tests.doctor.patients import Data, Noisy, OwnNoise, Stated, Stream, X, Y, dataset, loaded

WHERE = "Data.train_dataloader()"


def of(loader):
    return loader_findings(loader, WHERE)


@pytest.mark.parametrize(
    "loader",
    [
        loaded(),
        loaded(shuffle=True),
        loaded(dataset(ids=False)),
        loaded(batch_size=30, drop_last=True),
        loaded(dataset(100)),
        loaded(batch_size=None),
        identified(loaded(dataset(ids=False), drop_last=False)),
    ],
    ids=["ids", "shuffled with ids", "in order", "nothing to drop", "enough", "one by one", "identified"],
)
def test_nothing_to_find(loader):
    assert of(loader) == []


def test_samples_dropped_at_the_end_of_each_epoch():
    assert of(loaded(drop_last=True)) == [
        Finding(
            "drop_last=True with 120 samples in batches of 50",
            "Data.train_dataloader(), drop_last",
            "The last 20 of 120 samples are never trained on: their weight in J, and with it their score, is 0. Where "
            "a module states its losses (SampleLossModule), J counts them, and their scores say nothing.",
            "Set drop_last=False and fit again.",
            Severity.WARNING,
        )
    ]
    (one,) = of(loaded(drop_last=True, shuffle=True))
    which = "20 of 120 samples, others each time, are left out of an epoch; on average all count alike, as in J."
    assert (one.consequence, one.severity) == (which, Severity.NOTE)
    (one,) = of(identified(loaded(dataset(ids=False), drop_last=True)))
    assert one.what == "drop_last=True with 120 samples in batches of 50"
    assert [one.severity for one in of(loaded(drop_last=True, batch_size=200))] == [Severity.FATAL]


class InOrder(Sampler):
    """A sampler of the user's whose order is fixed."""

    def __iter__(self):
        return iter(range(120))

    def __len__(self):
        return 120


class InAnyOrder(InOrder):
    def __iter__(self):
        return iter(torch.randperm(120).tolist())


@pytest.mark.parametrize(
    ("sampler", "drop_last", "untrained"),
    [
        (InOrder(), True, 20),
        (InOrder(), False, 0),
        (InAnyOrder(), False, 0),
        (SubsetRandomSampler(range(100)), True, 20),
        (SubsetRandomSampler(range(110)), False, 10),
        (DistributedSamplerWrapper(SubsetRandomSampler(range(100)), 2, 0), True, 20),
    ],
)
def test_samples_that_a_sampler_never_gives(sampler, drop_last, untrained):
    found = of(DataLoader(dataset(), 50, sampler=sampler, drop_last=drop_last))
    assert [one.severity for one in found] == [Severity.WARNING] * bool(untrained)
    for one in found:
        assert one.consequence.startswith(f"{untrained} of 120 samples are never trained on: ")
        assert "None needed" not in one.remedy


def test_samples_in_any_order_that_a_short_batch_leaves_out_count_alike():
    (one,) = of(DataLoader(dataset(), 50, sampler=InAnyOrder(), drop_last=True))
    assert one.severity is Severity.NOTE


class Twice(BatchSampler):
    """Each batch twice."""

    def __iter__(self):
        for batch in super().__iter__():
            yield batch
            yield batch


def test_batches_by_a_rule_that_is_not_known():
    batches = Twice(SequentialSampler(dataset()), 50, drop_last=False)
    assert of(DataLoader(dataset(), batch_sampler=batches)) == [
        Finding(
            "batches drawn by Twice",
            "Data.train_dataloader(), batch_sampler",
            "J weighs the 120 samples as the epochs of this sampler do, which are followed; where a module states its "
            "losses (SampleLossModule), J counts each sample once.",
            "None needed if every sample is dealt out once; else give the dataset as it is drawn (shuffle=True).",
            Severity.WARNING,
        )
    ]


def test_few_samples():
    assert of(loaded(dataset(40))) == [
        Finding(
            "40 training samples",
            WHERE,
            "Each is 2.5% of J: a removal is a large step, which its derivative predicts less well.",
            "Take more samples, or trust the refits rather than the scores.",
            Severity.WARNING,
        )
    ]
    assert of(loaded(dataset(1))) == [
        Finding(
            "1 training sample",
            WHERE,
            "Nothing would be left without it.",
            "Take more samples, or trust the refits rather than the scores.",
            Severity.FATAL,
        )
    ]


def test_augmentation_is_handled_and_said():
    torch.manual_seed(0)
    (found,) = of(loaded(Noisy()))
    assert found == Finding(
        found.what,
        WHERE,
        "Handled: scores are of one draw of each sample (or the mean over --adapt.draws), under seeds of their own, "
        "the same in every pass and run; training saw others (augmentation, or noise drawn in the dataset).",
        "None needed; --adapt.draws K scores the mean over K draws of each sample.",
        Severity.WARNING,
    )
    torch.manual_seed(1)
    assert [found] == of(loaded(Noisy()))
    first, second = (SeededDraws(Noisy(), draw)[3][0] for draw in (0, -1))
    assert found.what == (f"two reads of training sample 3 differ, by up to {float((first - second).abs().max()):.3g}")


def test_augmentation_that_no_seed_fixes():
    (found,) = of(loaded(OwnNoise()))
    assert found.severity is Severity.FATAL
    assert found.what.startswith("two reads of training sample ")
    assert found.consequence == (
        "Scores would be of another sample than was trained on, and of another one each time: its random numbers do "
        "not come from the generators of torch, numpy and Python, which are seeded for each sample."
    )


def test_reading_leaves_random_numbers_as_they_were():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    of(loaded(Noisy()))
    assert torch.equal(torch.rand(3), expected)


def test_a_collate_function_that_crops():
    def crop(samples):
        x, y, ids = (torch.stack(column) for column in zip(*samples, strict=True))
        crop.calls += 1
        return x[:, : 2 + crop.calls % 2], y, ids

    crop.calls = 0
    (found,) = of(loaded(collate_fn=crop))
    assert found.what.startswith("two reads of training sample ")
    assert found.what.endswith((" have shapes [3] and [2]", " have shapes [2] and [3]"))
    assert found.fatal


def test_values_that_are_no_number_do_not_change():
    """What they are is for others to say."""
    x = X.clone()
    x[2, 0] = float("nan")
    assert of(loaded(TensorDataset(x, Y, torch.arange(len(x))))) == []


def test_shuffling_without_ids():
    assert of(loaded(dataset(ids=False), shuffle=True)) == [
        Finding(
            "shuffled batches without sample ids",
            WHERE,
            "Handled: the id of a sample is its position in the dataset, 0 to 119, in whatever order it is drawn.",
            "None needed while the dataset keeps its order; else give each sample an id (key `idx` or "
            "`sample_index`, or the third item of (x, y, idx) and `--adapt.ids third`).",
            Severity.NOTE,
        )
    ]
    assert of(identified(loaded(dataset(ids=False), shuffle=True))) == of(loaded(dataset(ids=False), shuffle=True))


def test_a_third_item_that_is_no_position():
    lengths = TensorDataset(X, Y, 1 + torch.arange(len(X)) % 5)
    (one,) = of(loaded(lengths))
    assert one.what == "a third item of whole numbers that are not the positions of the samples"
    assert one.consequence == "It is taken for data: the id of a sample is its position in the dataset."
    assert one.severity is Severity.NOTE
    assert of(identified(loaded(TensorDataset(X, Y, 7 + torch.arange(len(X)))), "third")) == []


class Apart:
    """A batch sampler that inherits from none of torch's: one sample a batch."""

    def __init__(self, sampler):
        self.sampler = sampler

    def __iter__(self):
        return ([row] for row in self.sampler)


def test_shuffling_without_ids_by_a_batch_sampler_of_another_class():
    data = dataset(ids=False)
    found = of(DataLoader(data, batch_sampler=Apart(RandomSampler(data))))
    assert [one.what for one in found] == ["batches drawn by Apart", "shuffled batches without sample ids"]


def test_no_loader():
    assert of([loaded(), loaded()]) == [
        Finding(
            "a list in place of one DataLoader",
            WHERE,
            "J runs over the samples of one DataLoader, each with one id; a run stops here.",
            "Return one torch.utils.data.DataLoader (torch.utils.data.ConcatDataset joins datasets).",
            Severity.FATAL,
        )
    ]


@pytest.mark.parametrize(
    "loader",
    [DataLoader(Stream(), batch_size=7), loaded(dataset(0)), loaded(sampler=WeightedRandomSampler([1.0] * 120, 120))],
    ids=["stream", "nothing", "sampler"],
)
def test_what_the_objective_refuses_itself(loader):
    assert of(loader) == []


class Changing(Data):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch


class Normalising(Stated):
    def on_before_batch_transfer(self, batch, dataloader_idx):
        return batch

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        return batch


def test_hooks_that_change_batches():
    assert hook_findings(Normalising(), Changing()) == [
        Finding(
            "batches changed on their way from the loader to the model",
            "Normalising.on_before_batch_transfer, Normalising.transfer_batch_to_device, "
            "Changing.on_after_batch_transfer",
            "Scores, curvature and |grad J| are of the batches as the loader gives them, training of what the hook "
            "makes of them.",
            "Do in the dataset or in collate_fn what the hook does.",
            Severity.WARNING,
        )
    ]
    assert hook_findings(Stated(), Data()) == hook_findings(L.LightningModule(), L.LightningDataModule()) == []
