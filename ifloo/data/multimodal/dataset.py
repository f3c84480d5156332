"""Data set of the image-text rows of a jsonl file, kept in memory if they all fit, else read for each batch."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from ifloo.data.multimodal.form import Form
from ifloo.data.multimodal.jsonl_file import JsonlFile
from ifloo.data.multimodal.row import BadRowError, Row
from ifloo.data.multimodal.scan import OnBadRow, Skipped, refusal, scan
from ifloo.data.multimodal.token_layout import NO_LOSS
from ifloo.errors import InputError

Dtype = Literal["float64", "float32"]
DTYPES: dict[str, torch.dtype] = {"float64": torch.float64, "float32": torch.float32}
CACHE_BYTES = 512 << 20
CAPTION = 40  # characters
Picture = UInt8[np.ndarray, "h w"] | UInt8[np.ndarray, "h w 3"]


class _Columns(NamedTuple):
    """Columns of a batch, except that pixels are still bytes."""

    input_ids: Int64[Tensor, "n s"]
    labels: Int64[Tensor, "n s"]
    attention_mask: Int64[Tensor, "n s"]
    answer_positions: Int64[Tensor, "n a"]
    image_flags: Int64[Tensor, "n m"]
    pixels: UInt8[Tensor, "n m c h w"]


class MultimodalSet(Dataset[dict[str, Tensor]]):
    """Rows with ids; batches are dicts whose shapes depend on the set, not on the rows of the batch.

    input_ids, labels, attention_mask [b, s] int64 with s the longest row of the set; pixel_values [b, m, c, h, w] in
    0..1 with m the largest number of images of a row (at least 1), zeros where image_flags [b, m] is 0; sample_index
    [b], the id: the position of the row's line in its file, which no limit and no skipped row changes; answer_positions
    [b, a], the positions whose next token is labelled (the only ones that need logits), padded with -1 to a, the
    largest number of such positions of a row. A batch of consecutive rows may share memory with the set: do not write
    into a batch.

    Args:
        path: Path of the jsonl file.
        form: Settings by which rows are read.
        limit: Number of usable rows to read, from the first; None for all.
        on_bad_row: "error" refuses the file at its first bad row, "skip" leaves bad rows out and lists them.
        dtype: Data type of pixel_values.
        setting: Name of the setting that holds the path, for error messages.

    Raises:
        InputError: If the file or one of its rows cannot be used. If the rows do not all fit in memory, an image with
            broken content is only detected when its batch is read.
    """

    def __init__(
        self,
        path: Path,
        form: Form,
        *,
        limit: int | None = None,
        on_bad_row: OnBadRow = "error",
        dtype: Dtype = "float64",
        setting: str = "path",
    ) -> None:
        self.form = form
        self.file = JsonlFile.at(path, setting)
        self._index = scan(self.file, form, limit, on_bad_row)
        self._dtype = DTYPES[dtype]
        self.ids = self._index.ids
        self.seq_len = int(self._index.lengths.max())
        self.answer_len = int(self._index.answers.max())
        self.max_images = max(1, int(self._index.images.max()))
        self._kept = self._read(range(len(self)), show_progress=True) if self._bytes() <= CACHE_BYTES else None

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        return self._index.skipped

    @property
    def rows_cut(self) -> int:
        """Number of rows that were too long and lost text."""
        return self._index.rows_cut

    @property
    def unread(self) -> tuple[str, ...]:
        """Keys of images in the rows that no field names, and that are not read."""
        return self._index.unread

    @property
    def rows_with_images(self) -> int:
        """Number of rows that have an image."""
        return int((self._index.images > 0).sum())

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return {name: column[0] for name, column in self.__getitems__([row]).items()}

    def __getitems__(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Returns a whole batch at once; torch's DataLoader calls this instead of `__getitem__` for each sample.

        Raises:
            IndexError: If a row does not exist.
        """
        rows = list(rows)
        if outside := [row for row in rows if not 0 <= row < len(self)]:
            raise IndexError(f"row {outside[0]} of {len(self)}")
        index: slice | Tensor = torch.tensor(rows, dtype=torch.int64)
        if rows and rows == list(range(rows[0], rows[0] + len(rows))):
            index = slice(rows[0], rows[-1] + 1)
        columns = _Columns(*(x[index] for x in self._kept)) if self._kept else self._read(rows)
        return {
            "input_ids": columns.input_ids,
            "labels": columns.labels,
            "attention_mask": columns.attention_mask,
            "answer_positions": columns.answer_positions,
            "pixel_values": columns.pixels.to(self._dtype).div_(255),
            "image_flags": columns.image_flags,
            "sample_index": self.ids[index],
        }

    def rows(self, ids: Sequence[int]) -> list[int]:
        """Returns the row of each id.

        Raises:
            KeyError: If an id does not exist.
        """
        requested, known = np.array(ids, np.int64), self.ids.numpy()
        rows = np.searchsorted(known, requested).clip(max=len(known) - 1)
        if len(unknown := requested[known[rows] != requested]):
            raise KeyError(int(unknown[0]))
        found: list[int] = rows.tolist()
        return found

    def picture(self, id_: int) -> Picture | None:
        """Returns the first image of a row as the model sees it; None for a row of text only."""
        return next(iter(self.pictures(id_)), None)

    def pictures(self, id_: int) -> list[Picture]:
        (row,) = self.rows([id_])
        pixels = (self._kept.pixels[row] if self._kept else self._read([row]).pixels[0]).numpy()
        shown = pixels[: self._index.images[row]]
        return [image[0] if len(image) == 1 else image.transpose(1, 2, 0) for image in shown]

    def question(self, id_: int) -> str:
        """Returns the last text of the user before the last answer, without image markers."""
        return self._parsed(id_).question

    def answer(self, id_: int) -> str:
        return self._parsed(id_).answer

    def caption(self, id_: int) -> str:
        """Returns question and answer in one short line."""
        row = self._parsed(id_)
        answer = _short(row.answer, CAPTION // 2)
        return f"{_short(row.question, CAPTION - len(answer))} -> {answer}"

    def content_sha256(self) -> str:
        """Returns the SHA-256 of everything a model reads from these rows, and of their ids.

        Raises:
            InputError: If an image no longer exists.
        """
        digest = hashlib.sha256(self.form.description().encode())
        bar = tqdm(self._parse(range(len(self))), "fingerprint", len(self), leave=False, disable=None)
        for id_, row in zip(self.ids.tolist(), bar, strict=True):
            try:
                digest.update(f"{id_} ".encode() + self.form.content_digest(row))
            except BadRowError as bad:
                raise InputError(refusal(self.file, id_, bad)) from bad
        return digest.hexdigest()

    def _bytes(self) -> int:
        """Estimates the memory that all rows need, bytes."""
        pixels = self.max_images * self.form.channels * self.form.height * self.form.width
        return len(self) * (pixels + 8 * (3 * self.seq_len + self.answer_len + self.max_images))

    def _parsed(self, id_: int) -> Row:
        return next(self._parse(self.rows([id_])))

    def _parse(self, rows: Sequence[int]) -> Iterator[Row]:
        return map(self.form.row, self.file.at_offsets([int(self._index.offsets[row]) for row in rows]))

    def _read(self, rows: Sequence[int], show_progress: bool = False) -> _Columns:
        """Reads rows from the file and its images.

        Raises:
            InputError: If the content of an image is broken.
        """
        columns = self._empty(len(rows))
        disable = None if show_progress else True  # None: no progress bar when the output is not a terminal
        bar = tqdm(self._parse(rows), self.file.path.name, len(rows), leave=False, disable=disable)
        for i, row in enumerate(bar):
            try:
                laid = self.form.tokens(row)
                columns.input_ids[i, : len(laid.input_ids)] = torch.tensor(laid.input_ids)
                columns.labels[i, : len(laid.labels)] = torch.tensor(laid.labels)
                columns.attention_mask[i, : len(laid.input_ids)] = 1
                columns.answer_positions[i, : len(laid.answer_positions)] = torch.tensor(laid.answer_positions)
                columns.image_flags[i, : len(row.images)] = 1
                for k, image in enumerate(self.form.pixels(row)):
                    columns.pixels[i, k] = torch.from_numpy(image)
            except BadRowError as bad:
                raise InputError(refusal(self.file, int(self.ids[rows[i]]), bad)) from bad
        return columns

    def _empty(self, n: int) -> _Columns:
        tokens, form = (n, self.seq_len), self.form
        return _Columns(
            torch.full(tokens, form.tokenizer.pad, dtype=torch.int64),
            torch.full(tokens, NO_LOSS, dtype=torch.int64),
            torch.zeros(tokens, dtype=torch.int64),
            torch.full((n, self.answer_len), -1, dtype=torch.int64),
            torch.zeros(n, self.max_images, dtype=torch.int64),
            torch.zeros(n, self.max_images, form.channels, form.height, form.width, dtype=torch.uint8),
        )


def _short(text: str, width: int) -> str:
    """Shortens a text to one line of at most `width` characters, without control characters."""
    line = " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", text).split())
    return line if len(line) <= width else line[: width - 1] + "…"
