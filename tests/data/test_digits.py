"""The set of digits: exact inputs, batches without copies, ids, and data that do not fit together."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ifloo.data import DigitSet
from ifloo.errors import InputError

N = 20
EACH = "\n  Every image needs one label and one id of its own: check that the files belong together."


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.from_numpy(np.random.default_rng(1).integers(0, 256, (N, 28, 28), dtype=np.uint8))


LABELS = torch.arange(N) % 10
IDS = torch.arange(100, 100 + N)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("normalize", [False, True])
def test_inputs_are_exact(images: Tensor, dtype, normalize: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ifloo.data.digits.BLOCK", 7)  # the blocks must not show
    pixels = images.numpy().reshape(N, 784).astype(dtype)
    expected = pixels / 255
    if normalize:
        expected = (expected - np.array(0.1307, dtype)) / np.array(0.3081, dtype)
    x = DigitSet(images, LABELS, IDS, normalize=normalize, dtype=dtype).x.numpy()
    assert x.dtype == dtype
    np.testing.assert_array_equal(x, expected)


def test_a_batch_of_consecutive_rows_is_a_view(images: Tensor):
    digits = DigitSet(images, LABELS, IDS)
    (whole,) = DataLoader(digits, batch_size=N, collate_fn=lambda batch: batch)
    assert whole["x"].data_ptr() == digits.x.data_ptr()
    part = digits.__getitems__([3, 4, 5])
    assert part["x"].data_ptr() == digits.x[3].data_ptr()
    assert part["idx"].tolist() == [103, 104, 105]


@pytest.mark.parametrize("rows", [[4, 2, 2, 19], [5, 4, 3], [0], [7, 8, 10], [-2, -1]])
def test_a_batch_equals_its_samples(images: Tensor, rows: list[int]):
    digits = DigitSet(images, LABELS, IDS)
    if min(rows) < 0:
        with pytest.raises((IndexError, RuntimeError)):
            digits.__getitems__(rows)
        return
    samples = [digits[row] for row in rows]
    for name, column in digits.__getitems__(rows).items():
        torch.testing.assert_close(column, torch.stack([sample[name] for sample in samples]), rtol=0, atol=0)


def test_pictures_and_captions_go_by_id(images: Tensor):
    digits = DigitSet(images, LABELS, IDS)
    np.testing.assert_array_equal(digits.picture(113), images[13].numpy())
    assert digits.caption(113) == "3"
    assert digits.rows([119, 100]) == [19, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": LABELS[:-1]}, "the train images: 20 images, 19 labels, 20 ids." + EACH),
        ({"ids": IDS // 2}, "the train images: 20 ids, of which only 10 differ." + EACH),
        (
            {"images": torch.zeros(N, 27, 29, dtype=torch.uint8)},
            "the train images: expected images of 28 x 28 pixels, found 27 x 29.\n"
            "  Resize them, or write a data module of their own.",
        ),
        (
            {"labels": torch.arange(N)},
            "the train images: expected labels 0..9, found 10 at row 10 (10 of 20 labels are outside).\n"
            "  Check that this is the label file of these images.",
        ),
    ],
    ids=["counts", "ids", "size", "labels"],
)
def test_data_that_do_not_fit(images: Tensor, change: dict[str, Tensor], message: str):
    given = {"images": images, "labels": LABELS, "ids": IDS} | change
    with pytest.raises(InputError) as caught:
        DigitSet(**given, where="the train images")
    assert str(caught.value) == message
