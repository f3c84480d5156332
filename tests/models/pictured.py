"""Image-text rows written as one word each, and a model small enough to be differentiated twice in milliseconds.

In a word a digit 0..7 is a text token, a letter A..D one of four images (two image tokens each), `(` begins an answer,
whose tokens are labelled, and `)` ends it with the token `END`, labelled too. "0A1(23)" asks about image A.
"""

from typing import Any

import torch
from torch import Tensor

from ifloo.models import MultimodalLM
from ifloo.models.multimodal import IGNORED
from ifloo.objective.batches import slice_batch

END, PAD, IMAGE, VOCABULARY = 8, 9, 10, 11
LENGTH, PER_IMAGE = 16, 2
PICTURES = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
SETTINGS: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "image_token_id": IMAGE,
    "embed_dim": 8,
    "num_heads": 2,
    "num_layers": 2,
    "max_seq_len": LENGTH,
    "image_size": 8,
    "patch_size": 4,
    "num_image_tokens": PER_IMAGE,
    "l2_reg": 0.01,
}
# Rows with an image; with text only and two turns; with two images; without an answer.
WORDS = ("0A1(23)", "4(5)6(71)", "A2B3(0)", "012")


def tiny(seed: int = 0, **changes: Any) -> MultimodalLM:
    """Builds a model whose weights depend only on the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MultimodalLM(**SETTINGS | changes)


def read(word: str) -> tuple[list[int], list[int]]:
    """Converts a word to tokens and labels."""
    ids: list[int] = []
    labels: list[int] = []
    answering = False
    for mark in word:
        tokens = [IMAGE] * PER_IMAGE if mark in "ABCD" else {"(": [], ")": [END]}.get(mark)
        tokens = [int(mark)] if tokens is None else tokens
        ids += tokens
        labels += tokens if answering else [IGNORED] * len(tokens)
        answering = mark == "(" or (answering and mark != ")")
    return ids, labels


def batch(*words: str, width: int = 0, asked: int = 1, images: int = 1) -> dict[str, Tensor]:
    """Builds a batch of rows with at least `width` tokens, `asked` answer positions and `images` images per row."""
    parsed = [read(word) for word in words]
    places = [[k - 1 for k, label in enumerate(labels) if label != IGNORED] for _, labels in parsed]
    shown = [[PICTURES["ABCD".index(mark)] for mark in word if mark in "ABCD"] for word in words]
    width = max(width, *(len(ids) for ids, _ in parsed))
    asked, images = max(asked, *map(len, places)), max(images, *map(len, shown))
    nothing = torch.zeros_like(PICTURES[0])

    def filled(columns: list[list[int]], width: int, value: int) -> Tensor:
        return torch.tensor([[*column, *[value] * (width - len(column))] for column in columns])

    return {
        "input_ids": filled([ids for ids, _ in parsed], width, PAD),
        "labels": filled([labels for _, labels in parsed], width, IGNORED),
        "attention_mask": filled([[1] * len(ids) for ids, _ in parsed], width, 0),
        "answer_positions": filled(places, asked, -1),
        "pixel_values": torch.stack([torch.stack([*x, *[nothing] * (images - len(x))]) for x in shown]),
        "sample_index": torch.arange(len(words)),
    }


def without(batch: dict[str, Tensor], name: str = "answer_positions") -> dict[str, Tensor]:
    return {key: value for key, value in batch.items() if key != name}


def samples(*words: str) -> list[dict[str, Tensor]]:
    """Builds a data set: one dict per row, all of the same width."""
    whole = batch(*words)
    return [{key: value[0] for key, value in slice_batch(whole, slice(i, i + 1)).items()} for i in range(len(words))]
