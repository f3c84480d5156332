"""Small jsonl files and images, and the settings by which they are read."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ifloo.data.multimodal.form import Form
from ifloo.data.multimodal.row import field_names
from ifloo.data.multimodal.tokenizer import ByteTokenizer

PAD, BOS, EOS, USER, ASSISTANT, SYSTEM, IMAGE = range(256, 263)


def turns(*texts: str) -> list[dict[str, str]]:
    """Returns turns in the order question, answer, question, answer, ..."""
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def conversation(*texts: str, image: Any = None) -> dict[str, Any]:
    return {"conversations": turns(*texts)} | ({} if image is None else {"image": image})


def as_bytes(row: Any) -> bytes:
    return row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False).encode("utf-8")


def write_jsonl(path: Path, rows: Sequence[Any]) -> Path:
    """Writes rows as JSON lines; rows that are bytes are written unchanged."""
    path.write_bytes(b"".join(as_bytes(row) + b"\n" for row in rows))
    return path


def write_image(path: Path, pixels: Any, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path, **options)
    return path


def form(image_root: Path, **changes: Any) -> Form:
    settings: dict[str, Any] = {
        "names": field_names(changes.pop("fields", None)),
        "tokenizer": ByteTokenizer(),
        "image_root": image_root,
        "height": 4,
        "width": 6,
        "channels": 1,
        "num_image_tokens": 2,
        "max_seq_len": 64,
    }
    return Form(**settings | changes)
