"""Data set of digit images in memory: the original pixels, the model inputs computed once, an id for each image."""

import random
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from ifloo.errors import InputError

Dtype = Literal["float32", "float64"]
DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "float64": torch.float64}
SIDE = 28
CLASSES = 10
MEAN, STD = 0.1307, 0.3081  # the customary constants: pixels/255 of the 60,000 training images, to four digits
BLOCK = 4096


class DigitSet(Dataset[dict[str, Tensor]]):
    """Images with labels and ids; batches are dicts {"x": [b, 784], "labels": [b], "idx": [b]}.

    A batch of consecutive rows is a view of the data, not a copy (the full training set is 345 MB in float64): do not
    write into a batch.

    Args:
        images: Pixels, 0..255.
        labels: Labels, 0..9.
        ids: Ids that identify the images in all results; here positions in the original file.
        normalize: Whether x is (pixel/255 - 0.1307) / 0.3081 instead of pixel/255.
        dtype: Data type of x.
        where: Name of the data in error messages.
        true_labels: Labels before some were flipped, for captions; None if no label was flipped.

    Raises:
        InputError: If the counts differ, images have another size, labels are outside 0..9, or an id occurs twice.
    """

    def __init__(
        self,
        images: UInt8[Tensor, "n height width"],
        labels: UInt8[Tensor, "n_labels"] | Int64[Tensor, "n_labels"],
        ids: Int64[Tensor, "n_ids"],
        *,
        normalize: bool = False,
        dtype: Dtype = "float64",
        where: str = "the digits",
        true_labels: UInt8[Tensor, "n_labels"] | Int64[Tensor, "n_labels"] | None = None,
    ) -> None:
        _check(images, labels, ids, where)
        if true_labels is not None and len(true_labels) != len(labels):
            raise InputError(f"{where}: {len(labels)} labels, {len(true_labels)} true labels.\n  {_ONE_EACH}")
        self.images = images
        self.labels = labels.long()
        self.true_labels = self.labels if true_labels is None else true_labels.long()
        self.ids = ids
        self.x = _inputs(images, normalize, DTYPES[dtype])
        self._row_of = {id_: row for row, id_ in enumerate(ids.tolist())}
        if len(self._row_of) != len(ids):
            raise InputError(f"{where}: {len(ids)} ids, of which only {len(self._row_of)} differ.\n  {_ONE_EACH}")

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return {"x": self.x[row], "labels": self.labels[row], "idx": self.ids[row]}

    def __getitems__(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Returns a whole batch at once; torch's DataLoader calls this instead of `__getitem__` for each sample."""
        columns = {"x": self.x, "labels": self.labels, "idx": self.ids}
        rows = list(rows)
        if rows and rows == list(range(rows[0], rows[0] + len(rows))) and rows[0] >= 0 and rows[-1] < len(self):
            return {name: column[rows[0] : rows[-1] + 1] for name, column in columns.items()}
        index = torch.tensor(rows, dtype=torch.int64)
        return {name: column.index_select(0, index) for name, column in columns.items()}

    def rows(self, ids: Sequence[int]) -> list[int]:
        """Returns the row of each id; raises `KeyError` if an id does not exist."""
        return [self._row_of[int(id_)] for id_ in ids]

    def picture(self, id_: int) -> UInt8[np.ndarray, "28 28"]:
        return self.images[self._row_of[int(id_)]].numpy()

    def caption(self, id_: int) -> str:
        """Returns the label and, if it was flipped, the original label, such as "6 (was 4)"."""
        row = self._row_of[int(id_)]
        label, true = int(self.labels[row]), int(self.true_labels[row])
        return str(label) if label == true else f"{label} (was {true})"


def flipped(labels: UInt8[Tensor, " n"], share: float, seed: int) -> tuple[UInt8[Tensor, " n"], list[int]]:
    """Flips round(share n) labels, drawn at random, each to one of the nine other classes with equal probability.

    Returns:
        The new labels, and the rows that were changed, in ascending order.
    """
    draw = random.Random(seed)  # its random() gives the same numbers in every version of Python
    keys = [draw.random() for _ in range(len(labels))]
    rows = sorted(sorted(range(len(labels)), key=keys.__getitem__)[: round(share * len(labels))])
    steps = torch.tensor([1 + int(draw.random() * (CLASSES - 1)) for _ in rows], dtype=torch.int64)
    changed = labels.clone()
    changed[rows] = ((labels[rows].long() + steps) % CLASSES).to(labels.dtype)
    return changed, rows


_ONE_EACH = "Every image needs one label and one id of its own: check that the files belong together."


def _inputs(images: UInt8[Tensor, "n 28 28"], normalize: bool, dtype: torch.dtype) -> Float[Tensor, "n 784"]:
    x = torch.empty(len(images), SIDE * SIDE, dtype=dtype)
    for source, target in zip(images.flatten(1).split(BLOCK), x.split(BLOCK), strict=True):  # no second full-size copy
        target.copy_(source).div_(255)
        if normalize:
            target.sub_(MEAN).div_(STD)
    return x


def _check(images: Tensor, labels: Tensor, ids: Tensor, where: str) -> None:
    if not len(images) == len(labels) == len(ids):
        raise InputError(f"{where}: {len(images)} images, {len(labels)} labels, {len(ids)} ids.\n  {_ONE_EACH}")
    if images.shape[1:] != (SIDE, SIDE):
        height, width = images.shape[1:]
        raise InputError(
            f"{where}: expected images of {SIDE} x {SIDE} pixels, found {height} x {width}.\n"
            "  Resize them, or write a data module of their own."
        )
    wrong = ((labels < 0) | (labels >= CLASSES)).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise InputError(
            f"{where}: expected labels 0..{CLASSES - 1}, found {int(labels[row])} at row {row} "
            f"({len(wrong)} of {len(labels)} labels are outside).\n"
            "  Check that this is the label file of these images."
        )
