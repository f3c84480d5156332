"""Types of the parts of a checkpoint file, which are checked in one place before anything reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ifloo.errors import InputError, summarise

SECTION = "ifloo"
_ABSENT = object()


class _Part(NamedTuple):
    """A part of a checkpoint.

    Attributes:
        keys: Keys that lead to it.
        expected: Noun phrase for what it must be.
        fits: Function that tells whether a value is that.
        required: Whether it must be there, where the part that holds it is.
    """

    keys: tuple[str, ...]
    expected: str
    fits: Callable[[object], bool]
    required: bool = False


def _named(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)


def _arguments(value: object) -> bool:
    return value is None or _named(value)


def _weights(value: object) -> bool:
    return isinstance(value, Mapping) and _named(value) and all(isinstance(one, Tensor) for one in value.values())


def _recipe(value: object) -> bool:
    if not isinstance(value, Mapping) or not _named(value):
        return False
    kinds: dict[str, tuple[type, ...]] = {
        "max_epochs": (int,),
        "accumulate_grad_batches": (int,),
        "gradient_clip_val": (int, float, type(None)),
        "precision": (str,),
        "max_steps": (int,),
        "gradient_clip_algorithm": (str, type(None)),
    }
    return kinds.keys() >= value.keys() and all(isinstance(one, kinds[name]) for name, one in value.items())


def _text(value: object) -> bool:
    return value is None or isinstance(value, str)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_PARTS = (
    _Part(("state_dict",), "a dictionary of tensors by name", _weights, True),
    _Part(("hyper_parameters",), "a dictionary of arguments by name", _arguments),
    _Part(("datamodule_hyper_parameters",), "a dictionary of arguments by name", _arguments),
    _Part(("epoch",), "a whole number", _whole),
    _Part(("global_step",), "a whole number", _whole),
    _Part(("loops",), "a dictionary", _named),
    _Part((SECTION,), "a dictionary", _named),
    _Part((SECTION, "seed"), "a whole number", _whole, True),
    _Part((SECTION, "fingerprint"), "a text", _text, True),
    _Part((SECTION, "model_class"), "a text", _text),
    _Part((SECTION, "recipe"), "a dictionary of Trainer settings", _recipe, True),
)


def refuse_malformed(path: Path, content: Mapping[str, object]) -> None:
    """Checks the types of all parts of a checkpoint that are read.

    Args:
        path: File, for messages.
        content: What the file holds.

    Raises:
        InputError: If a part is of another type, or missing.
    """
    for part in _PARTS:
        holder: object = content
        for key in part.keys[:-1]:
            holder = holder.get(key, _ABSENT) if isinstance(holder, Mapping) else _ABSENT
        if not isinstance(holder, Mapping):
            continue
        value = holder.get(part.keys[-1], _ABSENT)
        if part.required if value is _ABSENT else not part.fits(value):
            raise InputError(
                f"{path}: {'.'.join(part.keys)} must be {part.expected}; {_found(value)}.\n"
                "  Name a checkpoint as trainer.save_checkpoint, ModelCheckpoint or `ifloo fit` wrote it."
            )


def _found(value: object) -> str:
    """Describes what stands in the place of a part: its type, or the first of its items that may be strange."""
    if value is _ABSENT:
        return "it is missing"
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                return f"it has the key {key!r}"
        others = [f"{k!r} of type {type(v).__name__}" for k, v in value.items() if not isinstance(v, Tensor)]
        if others:
            return f"it holds {summarise(others)}"
    return f"it is of type {type(value).__name__}"
