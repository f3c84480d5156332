"""Data module of MNIST: the full files from a folder or the network, else the digits that come with ifloo."""

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, get_args

import torch
from torch import Tensor

from ifloo.data.digits import DigitSet, Dtype, flipped
from ifloo.data.download import MIRRORS, download
from ifloo.data.loaded_data_module import Content, LoadedDataModule
from ifloo.data.loading import log_on_rank_zero
from ifloo.data.source import FULL, FourFiles, Source, SourceSetting, embedded, full, missing
from ifloo.errors import InputError, WorkError

_log = logging.getLogger(__name__)


class MNISTDataModule(LoadedDataModule[DigitSet]):
    """Handwritten digits as dict batches {"x": [b, 784], "labels": [b], "idx": [b]}; idx is the position in the file.

    Args:
        root: Folder of the four IDX files, gzip or plain (also `raw/` or `MNIST/raw/` in it); target of downloads.
        source: "full" requires the 60,000 + 10,000 images, "embedded" takes the 5,000 + 1,000 that come with ifloo,
            "auto" takes the full files if they can be obtained. After `setup` the setting holds the source taken.
        train_limit: Number of training images to use, from the first; None for all.
        test_limit: Number of test images to use, from the first; None for all.
        corrupt: Share of the training labels in use that are flipped to another class on purpose, 0 to below 1, to
            test whether they can be found. Test labels are never flipped.
        corrupt_seed: Random seed of the choice of flipped labels and their new classes; the same on every machine.
        normalize: Whether x is (pixel/255 - 0.1307) / 0.3081 instead of pixel/255.
        dtype: Data type of x.
        batch_size: Batch size of all loaders; the size of the training set or more means full batch, in file order and
            uncopied.
        shuffle: Whether training batches are drawn in random order (mini-batches only; a full batch has no order).
        num_workers: Number of loading processes; the data are in memory, so 0 is usually fastest.

    Raises:
        InputError: If a setting is out of range; in `setup`, if files are missing, broken, or not MNIST.
    """

    files: ClassVar[FourFiles] = FULL
    mirrors: ClassVar[tuple[str, ...]] = MIRRORS
    # Settings that change no number: results computed under other values of these are the same results. Different
    # content, which `source` may lead to, is distinguished by `fingerprint`.
    free_settings: ClassVar[frozenset[str]] = frozenset({"root", "source", "test_limit", "num_workers"})
    path_settings: ClassVar[frozenset[str]] = frozenset({"root"})

    def __init__(
        self,
        root: str | Path = "./mnist",
        source: SourceSetting = "auto",
        train_limit: int | None = None,
        test_limit: int | None = None,
        corrupt: float = 0.0,
        corrupt_seed: int = 0,
        normalize: bool = False,
        dtype: Dtype = "float64",
        batch_size: int = 60_000,
        shuffle: bool = False,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        root = str(root)  # a Path in the hyperparameters would make the checkpoint unreadable with weights_only=True
        _one_of("source", source, get_args(SourceSetting))
        _one_of("dtype", dtype, get_args(Dtype))
        _at_least("train_limit", train_limit, 1)
        _at_least("test_limit", test_limit, 1)
        _share("corrupt", corrupt)
        _at_least("corrupt_seed", corrupt_seed, 0)  # Python seeds with the absolute value
        _at_least("batch_size", batch_size, 1)
        _at_least("num_workers", num_workers, 0)
        self.save_hyperparameters()
        self._root = Path(root)
        self._full_reason = f"the files are in {self._root}"
        self._embedded_reason = f"the files are not in {self._root}"
        self._test_available = 0  # before test_limit

    def prepare_data(self) -> None:
        """Downloads the files that `root` lacks (Lightning calls this in one process per node).

        Raises:
            InputError: If `source` is "full" and a file is available neither in `root` nor from a mirror.
        """
        if self._content is not None or self.hparams["source"] == "embedded":
            return
        absent = missing(self._root, self.files)
        if not absent:
            return
        try:
            download(absent, self._root, self.mirrors)
            self._full_reason = f"downloaded into {self._root}"
        except WorkError as error:
            if self.hparams["source"] == "full":
                raise InputError(
                    f"source full: {error}\n  Or take the digits that come with ifloo: {_EMBEDDED}."
                ) from error
            self._embedded_reason += "; " + str(error).splitlines()[0].rstrip(".")

    def test_batch(self, ids: Sequence[int]) -> dict[str, Tensor]:
        """Returns the test images with these ids, in this order.

        Raises:
            InputError: If no test image in use has one of the ids.
        """
        for id_ in ids:
            if not 0 <= id_ < len(self.test_set):
                raise InputError(self._no_such_test_id(id_))
        return self.test_set.__getitems__(self.test_set.rows(ids))

    def _read(self) -> Content[DigitSet]:
        """Chooses the source and reads it."""
        if self.trainer is None:  # without a Trainer, prepare_data has not been called yet
            self.prepare_data()
        source = self._choose()
        train_images, train_labels, test_images, test_labels = source.read()
        labels, flipped_ids = self._corrupted(train_labels)
        self._test_available = len(test_images)
        return Content(
            self._digits(train_images, labels, "train", source, train_labels),
            self._digits(test_images, test_labels, "test", source, test_labels),
            source.taken,
            source.reason,
            tuple(flipped_ids),
        )

    def _report(self) -> None:
        setting, taken = self.hparams["source"], self.source_taken
        self.hparams["source"] = taken  # so that a checkpoint records the data the model was trained on
        fell_back = setting == "auto" and taken == "embedded"
        log_on_rank_zero(
            _log,
            logging.WARNING if fell_back else logging.INFO,
            f"MNIST: {len(self.train_set)} training and {len(self.test_set)} test images of the {taken} digits "
            f"(source {setting}: {self.source_reason}){self._flips_note(len(self.corrupted_ids))}",
        )

    def _digest(self) -> str:
        """Returns the SHA-256 of pixels, labels, ids and normalisation.

        An id refers to the same test image in either source, so the test images need no fingerprint.
        """
        train = self.train_set
        digest = hashlib.sha256(f"{tuple(train.images.shape)} normalize={self.hparams['normalize']}".encode())
        for column in (train.images, train.labels, train.ids):
            digest.update(column.contiguous().numpy().data)
        return digest.hexdigest()

    def _choose(self) -> Source:
        setting: SourceSetting = self.hparams["source"]
        if setting == "embedded":
            return embedded("asked for")
        source = full(self._root, self._full_reason, self.files)
        if source is not None:
            return source
        if setting == "full":
            names = ", ".join(file.name for file in missing(self._root, self.files))
            raise InputError(
                f"source full: not in {self._root}: {names}.\n"
                f"  Put the files there, gzip or plain, or take the digits that come with ifloo: {_EMBEDDED}."
            )
        return embedded(self._embedded_reason)

    def _corrupted(self, labels: Tensor) -> tuple[Tensor, list[int]]:
        """Returns the training labels in use, some flipped, and the ids (positions) of the flipped labels."""
        in_use = labels[: self.hparams["train_limit"]]
        return flipped(in_use, self.hparams["corrupt"], self.hparams["corrupt_seed"])

    def _flips_note(self, count: int) -> str:
        corrupt, seed = self.hparams["corrupt"], self.hparams["corrupt_seed"]
        return f"; {count} training labels are flipped (corrupt {corrupt:g}, corrupt_seed {seed})" if corrupt else ""

    def _digits(self, images: Tensor, labels: Tensor, part: str, source: Source, true_labels: Tensor) -> DigitSet:
        limit: int | None = self.hparams[f"{part}_limit"]
        if limit is not None and limit > len(images):
            log_on_rank_zero(
                _log,
                logging.WARNING,
                f"{part}_limit is {limit}, the {part} images are {len(images)}: all of them are used",
            )
        return DigitSet(
            images[:limit],
            labels[:limit],
            torch.arange(len(images[:limit])),
            normalize=self.hparams["normalize"],
            dtype=self.hparams["dtype"],
            where=f"the {part} images of the {source.taken} digits",
            true_labels=true_labels[:limit],
        )

    def _no_such_test_id(self, id_: int) -> str:
        used = len(self.test_set)
        steps = ["Choose another id"]
        if used <= id_ < self._test_available:
            steps.append(f"raise test_limit to {id_ + 1} or more (it is {self.hparams['test_limit']})")
        elif used <= id_ < FULL_TEST_IMAGES and self.source_taken == "embedded":
            steps.append(f"take the full files (source: full), which hold ids 0..{FULL_TEST_IMAGES - 1}")
        return (
            f"test id {id_} is out of range: the {used} test images in use have ids 0..{used - 1}.\n"
            f"  {', or '.join(steps)}."
        )


FULL_TEST_IMAGES = 10_000
_EMBEDDED = "source embedded, 5,000 training and 1,000 test images"


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InputError(f"{name}: expected one of {', '.join(allowed)}, found {value!r}.\n  Choose one of these.")


def _share(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise InputError(f"{name}: expected a share from 0 to below 1, found {value}.\n  0.05 is 5 % of the labels.")


def _at_least(name: str, value: int | None, least: int) -> None:
    if value is not None and value < least:
        or_all = ", or none for all images" if name.endswith("_limit") else ""
        raise InputError(f"{name}: expected {least} or more, found {value}.\n  Give a larger number{or_all}.")
