"""Samples of a loader, accessed by id: batches, an image and a caption of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from torch.utils.data import DataLoader

from ifloo.errors import InputError
from ifloo.objective.batches import Batch, Identified, fetch_samples, tensors_of, without_ids
from ifloo.objective.id_rule import IdSetting
from ifloo.objective.ids import decide
from ifloo.objective.loaders import sequential, unwrap_loader
from ifloo.objective.singles import Singles, first_draw

READ_AT_ONCE = 512  # samples per batch while the data are read once
LABEL_KEYS = ("label", "labels", "target", "targets", "y", "class")
SMALLEST = 4  # smallest side of an image, pixels: smaller tensors are not shown as images


class Samples:
    """Samples of a loader, accessed by id; see `IdRule` for what an id is.

    Args:
        loader: Loader over a fixed set of samples.
        where: Name of the data in error messages.
        ids: Setting of the ids.
        noted: Whether an integer third item that is no id is noted in the log.

    Attributes:
        id_rule: Place where the ids of the samples stand.
    """

    def __init__(self, loader: DataLoader[Batch], where: str, ids: IdSetting = "auto", noted: bool = True) -> None:
        """Reads all data once if the batches carry ids.

        Raises:
            InputError: If the loader has no fixed set of samples or none at all, or the third item is to be the id and
                is none.
        """
        self.loader, self.where = sequential(loader, READ_AT_ONCE), where
        self.dataset, self.collate = unwrap_loader(self.loader)
        self.ids: Int64[Tensor, " n"]
        try:
            self.id_rule, self.ids = decide(
                self.dataset, self.collate, ids, loader.batch_size, loader.num_workers, noted
            )
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
        self._row_of = {i: row for row, i in enumerate(self.ids.tolist())}

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, ids: Sequence[int]) -> Identified:
        """Returns the samples with these ids, in this order.

        Raises:
            InputError: If an id does not exist.
        """
        for i in ids:
            if int(i) not in self._row_of:
                known = self.ids.tolist()
                raise InputError(
                    f"{self.where}: no sample has id {int(i)}; {len(known)} samples have ids within {min(known)}.."
                    f"{max(known)}{_some_of(known)}.\n  Choose another id."
                )
        batch = self._collated([self._row_of[int(i)] for i in ids])
        return Identified(batch, torch.tensor([int(i) for i in ids], dtype=torch.int64))

    def singles(self, ids: Sequence[int]) -> Identified:
        """Returns the samples with these ids, each collated alone; raises the errors of `batch`."""
        known = [self.batch([i]) for i in ids]
        return Identified(Singles(tuple(one.batch for one in known)), torch.tensor(list(ids), dtype=torch.int64))

    def picture(self, id_: int) -> UInt8[np.ndarray, "..."] | None:
        """Returns the first image-shaped tensor of a sample, scaled to 0..255; None if it has none."""
        for tensor in tensors_of(self._one(id_)):
            if (image := _image(tensor)) is not None:
                return image
        return None

    def caption(self, id_: int) -> str:
        """Returns the label of a sample; else its first scalar that is not its id, or an empty text.

        The label is the scalar under a key of `LABEL_KEYS`. In a tuple it is the first scalar.
        """
        one = self._one(id_)
        named = [one[key] for key in LABEL_KEYS if key in one] if isinstance(one, Mapping) else []
        for tensor in (*tensors_of(named), *self._without_ids(one)):
            if tensor.ndim == 1 or (tensor.ndim == 2 and tensor.shape[1] == 1):
                value = tensor.reshape(-1)[0].item()
                return f"{value:.4g}" if tensor.is_floating_point() else str(int(value))
        return ""

    def contents(self) -> Iterator[Batch]:
        """Iterates over all samples in order, in batches of `READ_AT_ONCE`."""
        return iter(self.loader)

    @property
    def first(self) -> Batch:
        """First sample, as a batch of one."""
        return first_draw(self._collated([0]))

    def _one(self, id_: int) -> Batch:
        return without_ids(self.batch([id_]))

    def _collated(self, rows: Sequence[int]) -> Batch:
        return self.collate(fetch_samples(self.dataset, rows))

    def _without_ids(self, batch: Batch) -> Iterator[Tensor]:
        if isinstance(batch, Mapping):
            batch = {k: v for k, v in batch.items() if k != self.id_rule.source}
        elif isinstance(batch, (tuple, list)) and self.id_rule.source == "third":
            batch = batch[:2]
        return tensors_of(batch)


def _some_of(ids: list[int]) -> str:
    """Lists the first ids if they are not all whole numbers between the smallest and the largest."""
    if max(ids) - min(ids) < len(ids):
        return ""
    return f", such as {', '.join(map(str, ids[:3]))}"


def _image(tensor: Tensor) -> np.ndarray | None:
    """Converts `[1, h, w]`, `[1, 1, h, w]`, `[1, 3, h, w]` or `[1, h, w, 3]` to uint8 `[h, w]` or `[h, w, 3]`."""
    x = tensor[0].detach().cpu()
    if x.ndim == 3 and x.shape[0] in (1, 3):
        x = x.permute(1, 2, 0)
    if x.ndim == 3 and x.shape[2] == 1:
        x = x[..., 0]
    if x.ndim not in (2, 3) or min(x.shape[:2]) < SMALLEST or (x.ndim == 3 and x.shape[2] != 3):
        return None
    if x.dtype == torch.uint8:
        return x.numpy()
    x = x.double()
    low, high = float(x.min()), float(x.max())
    return (255 * (x - low) / max(high - low, 1e-12)).round().to(torch.uint8).numpy()
