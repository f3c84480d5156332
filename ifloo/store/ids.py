"""Files of training ids: text, one id per line, most influential first."""

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ifloo.errors import InputError
from ifloo.store.atomic import write_text

_NUMBER = re.compile(r"[+-]?[0-9]+")


def top_k(scores: ArrayLike, ids: ArrayLike, k: int) -> NDArray[np.int64]:
    """Returns the ids of the k scores of largest size, largest first, equal ones by id; all n if k > n.

    Raises:
        InputError: If k is negative, a score is not finite, or there is not one id per score.
    """
    values, names = np.asarray(scores), np.asarray(ids, dtype=np.int64)
    if k < 0:
        raise InputError(f"top_k is {k}; it must be 0 or more.")
    if values.ndim != 1 or values.shape != names.shape:
        raise InputError(f"top_k needs one id per score, both [n]; scores are {values.shape}, ids {names.shape}.")
    if (bad := int((~np.isfinite(values)).sum())) > 0:
        raise InputError(f"{bad} of {values.size} scores are not finite: there is no order among them.")
    return names[np.lexsort((names, -np.abs(values)))[:k]]


def save_topk(path: Path | str, ids: ArrayLike) -> None:
    """Writes ids, one per line, in the order given."""
    write_text(path, "".join(f"{i}\n" for i in np.asarray(ids, dtype=np.int64).tolist()))


def read_ids(path: Path | str, known_ids: Iterable[int] | NDArray[np.integer]) -> NDArray[np.int64]:
    """Reads ids in the order of the file.

    Args:
        path: Text file with one training id per line.
        known_ids: Ids of the training data.

    Raises:
        InputError: If the file is missing or empty, or a line is blank, not a whole number, a duplicate, or an unknown
            id.
    """
    path = Path(path)
    known = {int(i) for i in known_ids}
    try:
        lines = path.read_text(encoding="utf-8-sig", errors="replace").split("\n")
    except OSError as error:
        raise InputError(
            f"Could not read the ids in {path}: {error.strerror}.\n"
            "  Give a text file with one training id per line, such as the topk_ids file that `ifloo influence` writes."
        ) from error
    if lines[-1] == "":
        lines.pop()
    if not lines:
        raise InputError(f"{path} holds no ids.\n  Give a text file with one training id per line.")
    seen: dict[int, int] = {}
    for number, line in enumerate(lines, start=1):
        value = _id(path, number, line.strip(), known)
        if value in seen:
            raise InputError(
                f"{path}, line {number}: id {value} was given on line {seen[value]} already.\n"
                "  A sample can be removed once. Delete one of the two lines."
            )
        seen[value] = number
    return np.fromiter(seen, dtype=np.int64, count=len(seen))


def _id(path: Path, number: int, text: str, known: set[int]) -> int:
    if not text:
        raise InputError(f"{path}, line {number}: blank line.\n  Each line holds one training id. Delete this line.")
    if not _NUMBER.fullmatch(text):
        shown = text if len(text) <= 40 else text[:40] + "..."
        raise InputError(
            f"{path}, line {number}: {shown!r} is not an id.\n  Each line holds one training id, a whole number."
        )
    if (value := int(text)) not in known:
        span = f"{len(known)} samples, ids {min(known)} to {max(known)}" if known else "no samples"
        raise InputError(
            f"{path}, line {number}: id {value} is not in the training data ({span}).\n"
            "  Were these ids made with other data, or with a larger train_limit?"
        )
    return value
