"""Top-k scores of all test samples, for data where storing all scores would need too much space."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64
from numpy.typing import NDArray

from ifloo.errors import InputError
from ifloo.store.all_tests import AllTests, ScoredTest
from ifloo.store.atomic import JSON
from ifloo.store.layout import Layout
from ifloo.store.npz_record import Column, Record

RECORD = Record(
    {
        "test_ids": Column(np.int64, ("test",)),
        "ids": Column(np.int64, ("test", "rank")),
        "scores": Column(np.float32, ("test", "rank")),
        "mean": Column(np.float64, ("test",)),
    },
    keys={"test": "test_ids", "rank": "ids"},
    refusal="{path} holds no top-k scores of ifloo",
    remedy="Delete it and run the same command again.",
)


class ScoreTopK(AllTests):
    """`topk.npz`: test_ids `[m]`, ids int64 `[m, k]`, scores float32 `[m, k]`, mean `[m]`; larger |score| first.

    Scores of equal size are ordered by id. Each block replaces the whole file and then adds its lines to the index.
    """

    form = "topk"

    def __init__(self, layout: Layout, test_ids: Sequence[int], train_ids: NDArray[np.int64], k: int) -> None:
        """Reads the existing file and index.

        Raises:
            InputError: If the folder holds scores in another form, or another number of ids per test.
        """
        super().__init__(layout, test_ids, train_ids)
        self.k = min(k, len(self.train_ids))
        self._kept: dict[int, tuple[NDArray[np.int64], NDArray[np.float32], float]] = {}
        if layout.all_topk.exists():
            self._kept = self._read(layout.all_topk)

    @property
    def missing(self) -> list[int]:
        return [t for t in self.test_ids if t not in self.rows or t not in self._kept]

    def _store(self, block: Sequence[ScoredTest], scores: NDArray[np.float32]) -> None:
        for one, row in zip(block, scores, strict=True):
            places = largest(row, self.train_ids, self.k)
            self._kept[one.test_id] = (self.train_ids[places], row[places], one.score_mean)
        tests = sorted(self._kept)
        ids, values, means = zip(*(self._kept[t] for t in tests), strict=True)
        content = {"test_ids": tests, "ids": np.stack(ids), "scores": np.stack(values), "mean": means}
        RECORD.write(self.layout.all_topk, content)

    def _place(self, test_id: int) -> dict[str, JSON]:
        return {"path": self.layout.all_topk.name}

    def _read(self, path: Path) -> dict[int, tuple[NDArray[np.int64], NDArray[np.float32], float]]:
        arrays = RECORD.read(path)
        ids = arrays["ids"]
        if ids.shape[1] != self.k:
            raise InputError(
                f"{path} holds {ids.shape[1]} ids of each test; attribution.top_k asks for {self.k}.\n"
                "  Ask for as many, give another --output_dir, or --overwrite to replace the file."
            )
        columns = (arrays["test_ids"], ids, arrays["scores"], arrays["mean"])
        return {int(t): (i, s, float(x)) for t, i, s, x in zip(*columns, strict=True)}


def largest(scores: Float32[np.ndarray, " n"], ids: Int64[np.ndarray, " n"], k: int) -> Int64[np.ndarray, " k"]:
    """Finds the positions of the k largest |score|, largest first, equal ones by id, without sorting all n."""
    size = np.abs(scores)
    least = np.partition(size, len(size) - k)[len(size) - k]
    found = np.flatnonzero(size >= least)
    return found[np.lexsort((ids[found], -size[found]))[:k]]
