"""Data module of image-text rows: the user's jsonl files, or a small set made from the digits that come with ifloo."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar, Literal

from torch import Tensor

from ifloo.data.loaded_data_module import Content, LoadedDataModule
from ifloo.data.loading import log_on_rank_zero
from ifloo.data.multimodal.dataset import Dtype, MultimodalSet
from ifloo.data.multimodal.embedded import EmbeddedSet, make_embedded
from ifloo.data.multimodal.form import Channels, Form
from ifloo.data.multimodal.row import field_names
from ifloo.data.multimodal.scan import OnBadRow
from ifloo.data.multimodal.settings import canvas, check_settings
from ifloo.data.multimodal.tokenizer import ByteTokenizer, Tokenizer
from ifloo.errors import InputError

_log = logging.getLogger(__name__)


class MultimodalDataModule(LoadedDataModule[MultimodalSet]):
    """Conversations about images as dict batches (see `MultimodalSet`); an id is the position of a row's line.

    Args:
        train_jsonl: File of the training rows, one JSON object a line or one JSON array of them; None for the set made
            from the digits that come with ifloo.
        test_jsonl: File of the rows to validate on and to explain; required with `train_jsonl`.
        image_root: Folder that image paths are relative to and may not leave; None for the folder of each file.
        root: Folder to which the set that comes with ifloo is written.
        corrupt: Share of that set's training answers that are made wrong on purpose, 0 to below 1.
        train_limit: Number of usable training rows to read, from the first; None for all.
        test_limit: Number of usable test rows to read, from the first; None for all.
        on_bad_row: "error" refuses a file at its first bad row, "skip" leaves bad rows out and lists them.
        fields: Other names for image, conversations, from, value, messages, role, content, such as {"image": "img"}.
        tokenizer: Tokenizer of the text, which is not stored in checkpoints; None for `ByteTokenizer`.
        image_size: Size of the canvas that images are placed on, pixels: a side, or [height, width].
        channels: Number of colour channels: 1 for grey, 3 for RGB.
        num_image_tokens: Number of tokens of one image, equal to the model's.
        max_seq_len: Largest number of tokens of a row; longer rows lose text, questions first.
        dtype: Data type of pixel_values.
        batch_size: Batch size of all loaders; the size of the training set or more means full batch, in file order.
        shuffle: Whether training batches are drawn in random order (mini-batches only; a full batch has no order).
        num_workers: Number of loading processes; 0 is fastest while everything fits in memory.

    Raises:
        InputError: If a setting is out of range; in `setup`, if files or rows cannot be used.
    """

    # Settings that change no number: results computed under other values of these are the same results. Different
    # training rows, which paths and `on_bad_row` may lead to, are distinguished by `fingerprint`.
    free_settings: ClassVar[frozenset[str]] = frozenset(
        {"train_jsonl", "test_jsonl", "image_root", "root", "test_limit", "on_bad_row", "num_workers"}
    )
    path_settings: ClassVar[frozenset[str]] = frozenset({"train_jsonl", "test_jsonl", "image_root", "root"})

    def __init__(
        self,
        train_jsonl: str | None = None,
        test_jsonl: str | None = None,
        image_root: str | None = None,
        root: str = "./data/multimodal",
        corrupt: float = 0.0,
        train_limit: int | None = None,
        test_limit: int | None = None,
        on_bad_row: OnBadRow = "error",
        fields: dict[str, str] | None = None,
        tokenizer: Tokenizer | None = None,
        image_size: int | list[int] = [28, 56],  # ruff: ignore[mutable-argument-default]  # never changed
        channels: Channels = 1,
        num_image_tokens: int = 16,
        max_seq_len: int = 64,
        dtype: Dtype = "float64",
        batch_size: int = 64,
        shuffle: bool = True,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["tokenizer"])  # plain values: checkpoints stay readable with weights_only
        check_settings(self.hparams)
        height, width = canvas(image_size)
        self._any_form = Form(
            field_names(fields),
            tokenizer or ByteTokenizer(),
            Path(image_root or "."),
            height,
            width,
            channels,
            num_image_tokens,
            max_seq_len,
        )
        self._embedded: EmbeddedSet | None = None

    def prepare_data(self) -> None:
        """Writes the missing files of the set that comes with ifloo (Lightning calls this in one process per node)."""
        if self.hparams["train_jsonl"] is None and self._embedded is None:
            self._embedded = make_embedded(Path(self.hparams["root"]), self.hparams["corrupt"])

    @property
    def skipped(self) -> list[dict[str, str | int]]:
        """Bad rows left out of both files: {"file", "line", "reason"}; lines count from 1."""
        return [asdict(row) for part in (self.train_set, self.test_set) for row in part.skipped]

    @property
    def rows_cut(self) -> int:
        """Number of rows of both files that were longer than max_seq_len and lost text."""
        return self.train_set.rows_cut + self.test_set.rows_cut

    @property
    def tokenizer(self) -> Tokenizer:
        return self._any_form.tokenizer

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    def test_batch(self, ids: Sequence[int]) -> dict[str, Tensor]:
        """Returns the test rows with these ids, in this order.

        Raises:
            InputError: If no test row in use has one of the ids.
        """
        try:
            return self.test_set.__getitems__(self.test_set.rows(ids))
        except KeyError as error:
            raise InputError(self._no_such_test_id(error.args[0])) from error

    def _read(self) -> Content[MultimodalSet]:
        """Reads and checks the rows."""
        self.prepare_data()  # no effect in further processes, for which all files exist
        paths, embedded = self._paths(), self._embedded
        train, test = self._set("train", paths[0]), self._set("test", paths[1])
        used = set(train.ids.tolist())
        return Content(
            train,
            test,
            "embedded" if embedded else "jsonl",
            f"no train_jsonl is given; made in {self.hparams['root']}" if embedded else "train_jsonl is given",
            tuple(i for i in embedded.corrupted_ids if i in used) if embedded else (),
        )

    def _digest(self) -> str:
        """Returns the SHA-256 of tokens, image files and ids."""
        return self.train_set.content_sha256()

    def _paths(self) -> tuple[Path, Path]:
        if self._embedded:
            return self._embedded.train_jsonl, self._embedded.test_jsonl
        return Path(self.hparams["train_jsonl"]), Path(self.hparams["test_jsonl"])

    def _set(self, part: Literal["train", "test"], path: Path) -> MultimodalSet:
        image_root = self._embedded.image_root if self._embedded else Path(self.hparams["image_root"] or path.parent)
        return MultimodalSet(
            path,
            self._any_form.with_image_root(image_root),
            limit=self.hparams[f"{part}_limit"],
            on_bad_row=self.hparams["on_bad_row"],
            dtype=self.hparams["dtype"],
            setting=f"{part}_jsonl",
        )

    def _report(self) -> None:
        """Logs one line about the data read, and a warning for each limit, bad row or cut that applies."""
        for part, rows in (("train", self.train_set), ("test", self.test_set)):
            limit = self.hparams[f"{part}_limit"]
            if limit is not None and limit > len(rows):
                line = f"{part}_limit is {limit}, the usable {part} rows are {len(rows)}: all of them are used"
                log_on_rank_zero(_log, logging.WARNING, line)
            if rows.skipped:
                first = rows.skipped[0]
                bad, good = len(rows.skipped), len(rows)
                where = f"{first.file}: {bad} of {bad + good} rows are bad and left out"
                log_on_rank_zero(_log, logging.WARNING, f"{where}, the first at line {first.line}: {first.reason}")
            if rows.unread:
                keys = ", ".join(map(repr, rows.unread))
                line = f"{rows.rows_with_images} of {len(rows)} {part} rows have an image: what the rows hold under "
                step = f"name the key of the images by fields, as in {{image: {rows.unread[0]}}}"
                log_on_rank_zero(_log, logging.WARNING, f"{line}{keys} is not read; {step}")
        if self.rows_cut:
            limit = self.hparams["max_seq_len"]
            log_on_rank_zero(
                _log, logging.WARNING, f"{self.rows_cut} rows are longer than max_seq_len {limit} and lost text"
            )
        counts = f"{len(self.train_set)} training and {len(self.test_set)} test rows"
        log_on_rank_zero(_log, logging.INFO, f"Image-text data: {counts} ({self.source_taken}: {self.source_reason})")

    def _no_such_test_id(self, id_: int) -> str:
        known, limit = self.test_set.ids, self.hparams["test_limit"]
        steps = ["Choose another id"]
        left_out = next((bad for bad in self.test_set.skipped if bad.line == id_ + 1), None)
        if left_out:
            steps.append(f"correct line {left_out.line} of {left_out.file} ({left_out.reason})")
        elif limit is not None and id_ > int(known[-1]):
            steps.append(f"raise test_limit (it is {limit})")
        return (
            f"no test row in use has id {id_}: the {len(known)} test rows in use have ids within "
            f"{int(known[0])}..{int(known[-1])}.\n  {', or '.join(steps)}."
        )
