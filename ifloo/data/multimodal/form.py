"""How a line of the data becomes the numbers a model reads: all settings of that in one place."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from ifloo.data.multimodal.images import locate, read_image
from ifloo.data.multimodal.layout import Laid, lay_out
from ifloo.data.multimodal.row import Row, parse_row
from ifloo.data.multimodal.tokenizer import Tokenizer

Channels = Literal[1, 3]


@dataclass(frozen=True)
class Form:
    """Settings of a set of rows; every method raises `BadRowError` on a row that does not meet them.

    Attributes:
        names: what the fields are called in the data.
        tokenizer: of the text.
        image_root: the folder no image path may leave.
        height: of the canvas, pixels.
        width: of the canvas, pixels.
        channels: 1 for grey, 3 for RGB.
        num_image_tokens: tokens each image takes.
        max_seq_len: tokens a row may have.
    """

    names: Mapping[str, str]
    tokenizer: Tokenizer
    image_root: Path
    height: int
    width: int
    channels: Channels
    num_image_tokens: int
    max_seq_len: int

    def below(self, image_root: Path) -> Form:
        """The same for images in another folder."""
        return replace(self, image_root=image_root)

    def row(self, line: bytes) -> Row:
        return parse_row(line, self.names)

    def tokens(self, row: Row) -> Laid:
        return lay_out(row, self.tokenizer, self.num_image_tokens, self.max_seq_len)

    def find_images(self, row: Row) -> list[Path]:
        """The image files of a row, which are all there; what is in them is not looked at."""
        return [locate(name, self.image_root) for name in row.images]

    def pixels(self, row: Row) -> Iterator[UInt8[np.ndarray, "c h w"]]:
        for name in row.images:
            yield read_image(name, self.image_root, self.height, self.width, self.channels)

    def content_digest(self, row: Row) -> bytes:
        """SHA-256 of what the row gives the model: tokens, labels, and the bytes of its image files."""
        laid = self.tokens(row)
        digest = hashlib.sha256(json.dumps([laid.input_ids, laid.labels]).encode())
        for path in self.find_images(row):
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        return digest.digest()

    def description(self) -> str:
        """Everything but the folder, which changes no number."""
        return json.dumps(
            {
                "fields": dict(self.names),
                "tokenizer": self.tokenizer.description(),
                "image_size": [self.height, self.width],
                "channels": self.channels,
                "num_image_tokens": self.num_image_tokens,
                "max_seq_len": self.max_seq_len,
            },
            sort_keys=True,
        )
