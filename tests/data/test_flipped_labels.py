"""Training labels flipped on purpose: as many as asked for, the same on every machine, and nothing else changed."""

import logging
import random

import numpy as np
import pytest
import torch

from ifloo.data import DigitSet, MNISTDataModule
from ifloo.data.digits import flipped
from ifloo.errors import InputError


def ready(**settings) -> MNISTDataModule:
    data = MNISTDataModule(source="embedded", **settings)
    data.setup()
    return data


@pytest.fixture(scope="module")
def clean() -> MNISTDataModule:
    return ready()


@pytest.fixture(scope="module")
def wrong() -> MNISTDataModule:
    return ready(corrupt=0.05)


def test_a_share_of_the_training_labels_changes_and_nothing_else(clean: MNISTDataModule, wrong: MNISTDataModule):
    changed = (clean.train_set.labels != wrong.train_set.labels).nonzero().squeeze(1)
    assert tuple(changed.tolist()) == wrong.corrupted_ids
    assert len(changed) == 250
    assert clean.corrupted_ids == ()
    torch.testing.assert_close(wrong.train_set.x, clean.train_set.x, rtol=0, atol=0)
    torch.testing.assert_close(wrong.test_set.labels, clean.test_set.labels, rtol=0, atol=0)
    (batch,) = wrong.train_dataloader()
    torch.testing.assert_close(batch["labels"], wrong.train_set.labels, rtol=0, atol=0)


def test_every_machine_flips_the_same(clean: MNISTDataModule, wrong: MNISTDataModule):
    """Written out here; Python promises that random() of one seed is the same in all its versions."""
    draw = random.Random(0)
    keys = [draw.random() for _ in range(5000)]
    rows = sorted(np.argsort(keys)[:250].tolist())
    labels = clean.train_set.labels.clone()
    for row in rows:
        labels[row] = (labels[row] + 1 + int(draw.random() * 9)) % 10
    assert wrong.corrupted_ids == tuple(rows)
    assert wrong.corrupted_ids[:5] == (35, 40, 117, 124, 125)
    torch.testing.assert_close(wrong.train_set.labels, labels, rtol=0, atol=0)


def test_each_other_class_is_as_likely():
    labels = torch.full((9000,), 4, dtype=torch.uint8)
    changed, rows = flipped(labels, 0.999, 3)
    counts = torch.bincount(changed[rows].long(), minlength=10)
    assert len(rows) == 8991
    assert int(counts[4]) == 0
    others = counts[counts > 0].double()
    assert len(others) == 9
    # Binomial of 8991 draws with p = 1/9: its standard deviation is 30; five of them.
    assert (others - 999).abs().max() < 150
    assert labels.unique().tolist() == [4]  # the labels given stay as they are


def test_limit_and_seed_choose_among_the_labels_in_use():
    small, other = ready(corrupt=0.1, train_limit=200), ready(corrupt=0.1, train_limit=200, corrupt_seed=1)
    assert len(small.corrupted_ids) == len(other.corrupted_ids) == 20
    assert max(*small.corrupted_ids, *other.corrupted_ids) < 200
    assert small.corrupted_ids != other.corrupted_ids


def test_the_content_is_another(clean: MNISTDataModule, wrong: MNISTDataModule):
    seeds = [ready(corrupt=0.05, corrupt_seed=seed).fingerprint() for seed in (0, 1)]
    assert seeds[0] == wrong.fingerprint()
    assert len({clean.fingerprint(), *seeds}) == 3
    assert clean.fingerprint() == ready(corrupt_seed=1).fingerprint()
    assert (wrong.hparams["corrupt"], wrong.hparams["corrupt_seed"]) == (0.05, 0)
    assert not {"corrupt", "corrupt_seed"} & MNISTDataModule.free_settings


def test_the_caption_says_what_the_label_was(clean: MNISTDataModule, wrong: MNISTDataModule):
    flip = wrong.corrupted_ids[0]
    now, was = int(wrong.train_set.labels[flip]), int(clean.train_set.labels[flip])
    assert wrong.train_set.caption(flip) == f"{now} (was {was})"
    assert wrong.train_set.caption(flip + 1) == clean.train_set.caption(flip + 1) == "6"
    assert wrong.test_set.caption(8) == "5"
    np.testing.assert_array_equal(wrong.train_set.picture(flip), clean.train_set.picture(flip))


def test_one_line_says_so(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, "ifloo"):
        ready(corrupt=0.05, train_limit=100, corrupt_seed=2)
    assert caplog.messages == [
        "MNIST: 100 training and 1000 test images of the embedded digits (source embedded: asked for); 5 training "
        "labels are flipped (corrupt 0.05, corrupt_seed 2)"
    ]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"corrupt": 1.0}, "corrupt: expected a share from 0 to below 1, found 1.0.\n  0.05 is 5 % of the labels."),
        ({"corrupt": -0.1}, "corrupt: expected a share from 0 to below 1, found -0.1.\n  0.05 is 5 % of the labels."),
        (
            {"corrupt": float("nan")},
            "corrupt: expected a share from 0 to below 1, found nan.\n  0.05 is 5 % of the labels.",
        ),
        ({"corrupt_seed": -1}, "corrupt_seed: expected 0 or more, found -1.\n  Give a larger number."),
    ],
)
def test_settings_out_of_range(setting, message: str):
    with pytest.raises(InputError) as caught:
        MNISTDataModule(**setting)
    assert str(caught.value) == message


def test_true_labels_belong_to_the_images():
    images, labels = torch.zeros(3, 28, 28, dtype=torch.uint8), torch.tensor([1, 2, 3])
    with pytest.raises(InputError) as caught:
        DigitSet(images, labels, torch.arange(3), true_labels=labels[:2])
    assert str(caught.value) == (
        "the digits: 3 labels, 2 true labels.\n"
        "  Every image needs one label and one id of its own: check that the files belong together."
    )
