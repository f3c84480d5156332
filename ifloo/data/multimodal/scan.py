"""First pass over a jsonl file: checks every row and keeps an index of offsets and lengths."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor
from tqdm import tqdm

from ifloo.data.multimodal.form import Form
from ifloo.data.multimodal.jsonl_file import JsonlFile
from ifloo.data.multimodal.row import BadRowError, Row
from ifloo.errors import InputError

OnBadRow = Literal["error", "skip"]


@dataclass(frozen=True)
class Skipped:
    """A bad row that was left out.

    Attributes:
        file: Path of the file.
        line: Line number, from 1 as in editors.
        reason: Expected and actual content.
    """

    file: str
    line: int
    reason: str


@dataclass(frozen=True)
class Index:
    """Index of the usable rows of a file.

    Attributes:
        ids: Positions of the rows' lines in the file, from 0; ascending.
        offsets: Offset of each row's line, bytes.
        lengths: Number of tokens of each row.
        answers: Number of tokens of each row that the loss counts.
        images: Number of images of each row.
        rows_cut: Number of rows that were too long and lost text.
        skipped: Bad rows left out.
        unread: Keys of images in usable rows that no field names.
    """

    ids: Int64[Tensor, " n"]
    offsets: Int64[np.ndarray, " n"]
    lengths: Int64[np.ndarray, " n"]
    answers: Int64[np.ndarray, " n"]
    images: Int64[np.ndarray, " n"]
    rows_cut: int
    skipped: tuple[Skipped, ...]
    unread: tuple[str, ...] = ()


def scan(file: JsonlFile, form: Form, limit: int | None, on_bad_row: OnBadRow) -> Index:
    """Checks the rows of a file, up to `limit` usable ones.

    With "error" the first bad row raises; images must exist and are decoded later. With "skip" bad rows are listed and
    left out; images are decoded here, so that the number of usable rows is known.

    Raises:
        InputError: If a row is bad and `on_bad_row` is "error", or no row is usable.
    """
    columns = [array("q") for _ in ("ids", "offsets", "lengths", "answers", "images")]
    skipped: list[Skipped] = []
    unread: dict[str, None] = {}
    rows_cut = 0
    # disable=None: no progress bar when the output is not a terminal (a log file, a CI job).
    with tqdm(desc=file.path.name, total=file.size, unit="B", unit_scale=True, leave=False, disable=None) as bar:
        for line in file.lines():
            try:
                row = form.row(line.content)
                numbers, cut = _check(row, form, decode=on_bad_row == "skip")
            except BadRowError as bad:
                if on_bad_row == "error":
                    raise InputError(refusal(file, line.position, bad)) from bad
                skipped.append(Skipped(str(file.path), line.position + 1, bad.reason))
                continue
            for column, value in zip(columns, (line.position, line.offset, *numbers), strict=True):
                column.append(value)
            rows_cut += cut
            unread |= dict.fromkeys(row.unread)
            bar.update(line.offset - bar.n)
            if len(columns[0]) == limit:
                break
    if not columns[0]:
        raise InputError(_no_row(file, skipped))
    ids, offsets, lengths, answers, images = (np.array(column, np.int64) for column in columns)
    return Index(torch.from_numpy(ids), offsets, lengths, answers, images, rows_cut, tuple(skipped), tuple(unread))


def refusal(file: JsonlFile, position: int, bad: BadRowError) -> str:
    where = f"{file.path}, {file.unit} {position + 1}"
    return f"{where}: {bad.reason}.\n  {bad.step}, or leave bad rows out with on_bad_row: skip."


def _check(row: Row, form: Form, decode: bool) -> tuple[tuple[int, int, int], bool]:
    """Returns the numbers of tokens, answer tokens and images of a row, and whether it was cut."""
    laid = form.tokens(row)
    if decode:
        for _ in form.pixels(row):
            pass
    else:
        form.find_images(row)
    return (len(laid.input_ids), len(laid.answer_positions), len(row.images)), laid.cut


def _no_row(file: JsonlFile, skipped: list[Skipped]) -> str:
    if not skipped:
        return f"{file.path}: expected a row in each line, found no row at all.\n  Give a file with rows."
    return (
        f"{file.path}: all {len(skipped)} rows are bad, the first at line {skipped[0].line}: {skipped[0].reason}.\n"
        "  Check fields and image_root: they may not be those of this file."
    )
