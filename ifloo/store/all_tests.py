"""Scores of all test samples in one folder, written in blocks, in one of three forms; resumable after any interruption.

A test is done when `index.jsonl` has its line *and* its scores exist. The lines of a block are written, in one write,
after its scores are on disk: a run killed at any moment loses at most one block.
"""

from __future__ import annotations

import os
import secrets
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float32
from numpy.typing import NDArray

from ifloo.errors import InputError, WorkError
from ifloo.store import jsonl
from ifloo.store.atomic import JSON, not_written, sync_folder
from ifloo.store.layout import Layout
from ifloo.store.npz_record import write_npy_head

Form = Literal["files", "matrix", "topk"]
ROWS: Mapping[Form, str] = {"files": "one file per test", "matrix": "one matrix", "topk": "the top k of each test"}
SETTING: Mapping[Form, str] = {"files": "neither matrix nor topk_only", "matrix": "matrix", "topk": "topk_only"}


@dataclass(frozen=True)
class ScoredTest:
    """One test of a block, with the content of its line in the index.

    Attributes:
        test_id: Id of the test sample.
        score_mean: Mean of its n scores before they were rounded to float32, nats per unit weight.
        certificate: Certificate of its solve, and the SHA-256 of the sample's content.
    """

    test_id: int
    score_mean: float
    certificate: Mapping[str, JSON]


class AllTests(ABC):
    """The folder `all_tests` of one experiment.

    Attributes:
        layout: Paths of the files.
        test_ids: Ids of all m tests, in order.
        train_ids: Ids of the training samples, `[n]`, in order.
        form: Form in which the folder stores scores.
    """

    form: ClassVar[Form]

    def __init__(self, layout: Layout, test_ids: Sequence[int], train_ids: NDArray[np.int64]) -> None:
        """Reads the index of the folder and writes nothing.

        Raises:
            InputError: If the folder holds scores in another form, or for other tests.
        """
        self.layout, self.test_ids, self.train_ids = layout, list(test_ids), np.asarray(train_ids, dtype=np.int64)
        self._refuse_other_form()
        self.rows: dict[int, dict[str, Any]] = {}
        if layout.index.exists():
            jsonl.repair(layout.index)
            self.rows = {row["test_id"]: row for row in jsonl.read(layout.index)}

    @property
    @abstractmethod
    def missing(self) -> list[int]:
        """Tests still to be scored, in order."""

    def add(self, block: Sequence[ScoredTest], scores: Float32[np.ndarray, "b n"]) -> None:
        """Writes the scores of a block to disk, then its lines to the index.

        Raises:
            WorkError: If a score is not finite, or the disk is full; the tests of earlier blocks are unchanged.
        """
        for one in block:
            if not np.isfinite(one.score_mean):
                raise WorkError(
                    f"The scores of test {one.test_id} are not finite (their mean is {one.score_mean}); they were not "
                    f"written to {self.layout.all_tests}.\n  Finished tests are kept. Use float64, or look at the "
                    "model's losses: one of them overflows."
                )
        try:
            self._store(block, scores)
        except OSError as error:
            raise WorkError(not_written(self.layout.all_tests, error, "Finished tests are kept.")) from error
        lines = [
            {"test_id": one.test_id, **self._place(one.test_id), "score_mean": one.score_mean, **one.certificate}
            for one in block
        ]
        jsonl.extend(self.layout.index, [line for line in lines if line["test_id"] not in self.rows])
        self.rows |= {int(line["test_id"]): dict(line) for line in lines}  # type: ignore[arg-type]

    def finish(self) -> None:  # ruff: ignore[empty-method-without-abstract-decorator] -- most forms need no last step
        """Completes the folder after the last test; a run that has nothing to do calls it too."""

    @abstractmethod
    def _store(self, block: Sequence[ScoredTest], scores: NDArray[np.float32]) -> None:
        """Writes scores to disk; the lines of the index follow them."""

    @abstractmethod
    def _place(self, test_id: int) -> dict[str, JSON]:
        """Returns the place of a test's scores: `path`, and for a matrix the `row` in it."""

    def _refuse_other_form(self) -> None:
        at, folder = self.layout, self.layout.all_tests
        exists: dict[Form, bool] = {
            "files": next(folder.glob("if_scores_test_*.npy"), None) is not None,
            "matrix": at.all_scores_matrix.exists() or at.all_scores_begun.exists(),
            "topk": at.all_topk.exists(),
        }
        for found in (form for form, present in exists.items() if present and form != self.form):
            raise InputError(
                f"{folder} holds scores of all tests as {ROWS[found]} (attribution: {SETTING[found]}); asked for "
                f"{ROWS[self.form]}.\n  The forms are not mixed in one folder. Ask for the stored form, give another "
                "--output_dir, or --overwrite to replace the stored scores."
            )


class ScoreFiles(AllTests):
    """One `if_scores_test_<t>.npy` per test, float32 `[n]`."""

    form = "files"

    @property
    def missing(self) -> list[int]:
        return [t for t in self.test_ids if t not in self.rows or not self.layout.all_scores(t).exists()]

    def _store(self, block: Sequence[ScoredTest], scores: NDArray[np.float32]) -> None:
        """Writes temporary files, renames them, and flushes the folder once: each file appears whole or not at all."""
        folder = self.layout.all_tests
        folder.mkdir(parents=True, exist_ok=True)
        mark = f"{os.getpid()}-{secrets.token_hex(4)}.tmp"
        paths = [self.layout.all_scores(one.test_id) for one in block]
        temporary = [path.with_name(f".{path.name}.{mark}") for path in paths]
        try:
            for path, row in zip(temporary, scores, strict=True):
                with open(path, "xb") as file:
                    write_npy_head(file, row.shape)
                    file.write(np.ascontiguousarray(row).data)
                    file.flush()
                    os.fsync(file.fileno())
            for path, final in zip(temporary, paths, strict=True):
                os.replace(path, final)
        except BaseException:
            for path in temporary:
                with suppress(OSError):
                    path.unlink(missing_ok=True)
            raise
        sync_folder(folder)

    def _place(self, test_id: int) -> dict[str, JSON]:
        return {"path": self.layout.all_scores(test_id).name}
