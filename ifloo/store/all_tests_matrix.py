"""Scores of all test samples as one matrix on disk, which may be larger than memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ifloo.errors import InputError
from ifloo.store.all_tests import AllTests, ScoredTest
from ifloo.store.atomic import JSON, replacing, sync_folder
from ifloo.store.npz_record import read_npy_head, write_npy_head


class ScoreMatrix(AllTests):
    """`if_scores.npy`, float32 `[m, n]`, for `np.load(path, mmap_mode="r")`; the lines of the index name the `row`.

    Until the last row is written, the file is `if_scores.npy.part`. It has its full size from the first block on, with
    zeros for missing rows. A row is valid once its line is in the index; a later run continues in the same file. The
    complete file is renamed. Rows are written by `pwrite`, not through a memory map, whose pages would count as memory
    of the process.
    """

    form = "matrix"

    @property
    def missing(self) -> list[int]:
        """Tests still to be scored, in order.

        Raises:
            InputError: If tests are missing, and the existing matrix has other rows or columns.
        """
        if (existing := self._existing) is None:
            return self.test_ids
        missing = [t for t in self.test_ids if t not in self.rows]
        if missing:
            self._refuse_other_shape(existing)
        return missing

    def finish(self) -> None:
        if self.layout.all_scores_begun.exists() and not self.missing:
            os.replace(self.layout.all_scores_begun, self.layout.all_scores_matrix)
            sync_folder(self.layout.all_tests)

    @property
    def _existing(self) -> Path | None:
        both = (self.layout.all_scores_begun, self.layout.all_scores_matrix)
        return next((path for path in both if path.exists()), None)

    @property
    def _shape(self) -> tuple[int, int]:
        return len(self.test_ids), len(self.train_ids)

    def _store(self, block: Sequence[ScoredTest], scores: NDArray[np.float32]) -> None:
        self._begin()
        row_of = self._row_of
        places = [row_of[one.test_id] for one in block]
        with open(self.layout.all_scores_begun, "r+b", buffering=0) as file:
            shape, start = read_npy_head(file, self.layout.all_scores_begun)
            for run in _consecutive(places):
                content = np.ascontiguousarray(scores[run], dtype="<f4").data.cast("B")
                _write_at(file.fileno(), content, start + places[run.start] * shape[1] * 4)
            os.fsync(file.fileno())

    def _begin(self) -> None:
        """Creates the file, or renames a complete one whose index has lost a line."""
        begun = self.layout.all_scores_begun
        if begun.exists():
            return
        if self.layout.all_scores_matrix.exists():
            os.replace(self.layout.all_scores_matrix, begun)
            return
        if self.rows:  # their matrix has been deleted
            self.rows = {}
            self.layout.index.unlink()
        with replacing(begun) as file:
            write_npy_head(file, self._shape)
            file.truncate(file.tell() + 4 * self._shape[0] * self._shape[1])

    def _place(self, test_id: int) -> dict[str, JSON]:
        return {"path": self.layout.all_scores_matrix.name, "row": self._row_of[test_id]}

    @property
    def _row_of(self) -> dict[int, int]:
        return {t: row for row, t in enumerate(self.test_ids)}

    def _refuse_other_shape(self, existing: Path) -> None:
        with open(existing, "rb") as file:
            shape = read_npy_head(file, existing)[0]
        row_of = self._row_of
        if shape == self._shape and all(row["row"] == row_of.get(t) for t, row in self.rows.items()):
            return
        raise InputError(
            f"{existing} is a matrix of {shape[0]} tests x {shape[1]} training samples for {len(self.rows)} tests; "
            f"asked for {self._shape[0]} x {self._shape[1]}, other tests or another order.\n"
            "  A matrix does not grow. Ask for the same tests, give another --output_dir, or --overwrite to replace it."
        )


def _consecutive(places: Sequence[int]) -> list[slice]:
    """Returns runs of consecutive rows of the file, as slices of the block."""
    runs = []
    for _, group in groupby(range(len(places)), key=lambda k: places[k] - k):
        members = list(group)
        runs.append(slice(members[0], members[-1] + 1))
    return runs


def _write_at(descriptor: int, content: memoryview, offset: int) -> None:
    """Writes the whole content in repeated calls: one writes at most 2 GiB, and a full disk accepts a part first."""
    while content:
        written = os.pwrite(descriptor, content, offset)
        content, offset = content[written:], offset + written
