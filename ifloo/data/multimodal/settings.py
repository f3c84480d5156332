"""Checks of the settings of `MultimodalDataModule` that need no data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ifloo.errors import InputError

LEAST = {
    "train_limit": 1,
    "test_limit": 1,
    "num_image_tokens": 1,
    "max_seq_len": 1,
    "batch_size": 1,
    "num_workers": 0,
}
VALUES: dict[str, tuple[str | int, ...]] = {
    "on_bad_row": ("error", "skip"),
    "channels": (1, 3),
    "dtype": ("float64", "float32"),
}


def check_settings(settings: Mapping[str, Any]) -> None:
    """Checks that numbers are large enough, values are among the allowed ones, and paths go together.

    Raises:
        InputError: If a setting is wrong; the message names the first one.
    """
    for name, least in LEAST.items():
        if settings[name] is not None and settings[name] < least:
            or_all = ", or none for all rows" if name.endswith("_limit") else ""
            raise InputError(
                f"{name}: expected {least} or more, found {settings[name]}.\n  Give a larger number{or_all}."
            )
    for name, values in VALUES.items():
        if settings[name] not in values:
            listed = ", ".join(map(str, values))
            raise InputError(f"{name}: expected one of {listed}, found {settings[name]!r}.\n  Choose one of these.")
    _check_paths(settings)


def canvas(image_size: int | list[int]) -> tuple[int, int]:
    """Returns height and width of the canvas, pixels.

    Raises:
        InputError: If `image_size` is not one or two numbers of 1 or more.
    """
    size = [image_size, image_size] if isinstance(image_size, int) else list(image_size)
    if len(size) != 2 or min(size) < 1:
        raise InputError(
            f"image_size: expected a side or [height, width] in pixels, each 1 or more, found {image_size}.\n"
            "  28 is a square; [28, 56] is twice as wide as high."
        )
    return size[0], size[1]


def _check_paths(settings: Mapping[str, object]) -> None:
    if settings["train_jsonl"] is None:
        if alone := [name for name in ("test_jsonl", "image_root", "fields") if settings[name] is not None]:
            raise InputError(
                f"{alone[0]} is given and train_jsonl is not: without it the set that comes with ifloo is used.\n"
                f"  Give train_jsonl too, or leave {alone[0]} out."
            )
        return
    if settings["test_jsonl"] is None:
        raise InputError(
            f"train_jsonl is given ({settings['train_jsonl']}) and test_jsonl is not: validation and the tests whose "
            "predictions are explained come from a file of their own.\n"
            "  Give test_jsonl, a file of the same form."
        )
    if settings["corrupt"]:
        raise InputError(
            f"corrupt: expected 0 for rows of one's own, found {settings['corrupt']}: only answers of the set that "
            "comes with ifloo are made wrong on purpose.\n  Leave corrupt out, or train_jsonl."
        )
