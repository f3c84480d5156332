"""Settings that turn a line of the data into the numbers a model reads."""

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
from ifloo.data.multimodal.row import Row, parse_row
from ifloo.data.multimodal.token_layout import TokenRow, lay_out
from ifloo.data.multimodal.tokenizer import Tokenizer

Channels = Literal[1, 3]


@dataclass(frozen=True)
class Form:
    """Settings of a set of rows; every method raises `BadRowError` for a row that does not meet them.

    Attributes:
        names: Key of each field in the data.
        tokenizer: Tokenizer of the text.
        image_root: Folder that no image path may leave.
        height: Height of the canvas, pixels.
        width: Width of the canvas, pixels.
        channels: Number of colour channels: 1 for grey, 3 for RGB.
        num_image_tokens: Number of tokens of each image.
        max_seq_len: Largest number of tokens of a row.
    """

    names: Mapping[str, str]
    tokenizer: Tokenizer
    image_root: Path
    height: int
    width: int
    channels: Channels
    num_image_tokens: int
    max_seq_len: int

    def with_image_root(self, image_root: Path) -> Form:
        """Returns the same settings for images in another folder."""
        return replace(self, image_root=image_root)

    def row(self, line: bytes) -> Row:
        return parse_row(line, self.names)

    def tokens(self, row: Row) -> TokenRow:
        return lay_out(row, self.tokenizer, self.num_image_tokens, self.max_seq_len)

    def find_images(self, row: Row) -> list[Path]:
        """Returns the paths of a row's images and checks that they exist; does not read their content."""
        return [locate(name, self.image_root) for name in row.images]

    def pixels(self, row: Row) -> Iterator[UInt8[np.ndarray, "c h w"]]:
        for name in row.images:
            yield read_image(name, self.image_root, self.height, self.width, self.channels)

    def content_digest(self, row: Row) -> bytes:
        """Returns the SHA-256 of what the model reads from a row: tokens, labels, and the bytes of its image files."""
        laid = self.tokens(row)
        digest = hashlib.sha256(json.dumps([laid.input_ids, laid.labels]).encode())
        for path in self.find_images(row):
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        return digest.digest()

    def description(self) -> str:
        """Returns all settings as JSON except the folder, which changes no number."""
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
