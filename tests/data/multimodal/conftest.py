"""Fixture: a folder with three images and a jsonl file with rows of every valid kind."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.multimodal.rows import conversation, write_image, write_jsonl

ROWS: list[Any] = [
    conversation("<image>\nWhat is it?", "a cat", image="a.png"),
    b"",
    conversation("这是什么？", "一只猫 🐈", image="sub/b.png"),
    conversation("Hello", "Hi", "<image><image> Same?", "no", image=["a.png", "c.png"]),
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            *({"role": r, "content": r} for r in ("user", "assistant")),
        ]
    },
    {"id": 7, "image": None, **conversation("1 + 1?", "2")},
]
IDS = [0, 2, 3, 4, 5]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Folder with a.png, sub/b.png, c.png (4 x 6 grey) and rows.jsonl, whose usable rows have the ids `IDS`."""
    draw = np.random.default_rng(0)
    for name in ("a.png", "sub/b.png", "c.png"):
        write_image(tmp_path / name, draw.integers(1, 256, (4, 6)))
    write_jsonl(tmp_path / "rows.jsonl", ROWS)
    return tmp_path
