"""More rows than memory is meant to hold: only a few numbers of each are kept."""

import json
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from ifloo.data import MultimodalSet
from tests.data.multimodal.rows import conversation, form, write_image

IMAGES = 20


def many(folder: Path, n: int, length: int) -> Path:
    """N rows, each with an image of one grey that follows from its id, and a text of this length."""
    for k in range(IMAGES):
        write_image(folder / f"{k}.png", np.full((4, 6), k + 1))
    with (folder / "rows.jsonl").open("w") as file:
        for i in range(n):
            row = conversation(f"{i} ".ljust(length, "q"), str(i), image=f"{i % IMAGES}.png")
            file.write(json.dumps(row) + "\n")
    return folder / "rows.jsonl"


@pytest.fixture(autouse=True)
def _small_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ifloo.data.multimodal.dataset.CACHE_BYTES", 1 << 20)


def test_twenty_thousand_rows(tmp_path: Path):
    """What the set holds is what a worker process receives: 40 bytes a row."""
    path = many(tmp_path, 20_000, 300)
    rows = MultimodalSet(path, form(tmp_path, max_seq_len=600))
    assert len(pickle.dumps(rows)) < 41 * 20_000 < path.stat().st_size / 8
    batch = rows.__getitems__(range(0, 20_000, 101))
    grey = (batch["pixel_values"][:, 0, 0, 0, 0] * 255).round().long()
    assert torch.equal(grey, batch["sample_index"] % IMAGES + 1)
    assert rows.answer(19_999) == "19999"


def test_reading_leaves_nothing_behind(tmp_path: Path):
    path = many(tmp_path, 400, 8000)
    tracemalloc.start()
    rows = MultimodalSet(path, form(tmp_path, max_seq_len=9000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    n = sum(len(batch["sample_index"]) for batch in DataLoader(rows, 10, collate_fn=lambda batch: batch))
    _, later = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert n == 400
    assert max(peak, later) < 1 << 20 < path.stat().st_size / 3
