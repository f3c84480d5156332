"""Generator of a small image-text set from the digits that come with ifloo, as PNG files and jsonl.

An image shows one digit, or two side by side; the questions are about the digit, its parity, the sum, and which is
larger, in English and Chinese. On every machine the jsonl is the same to the byte and the images to the pixel.
"""

from __future__ import annotations

import io
import json
import os
import random
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ifloo.data.source import embedded as embedded_digits
from ifloo.errors import InputError, WorkError

TRAIN_ROWS, TEST_ROWS = 2000, 200
Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = ("en", "zh")
Answer = Callable[[Sequence[int], Language], str]
T = TypeVar("T")

_CHINESE_DIGITS = "零一二三四五六七八九"
_LARGER = {"en": ("left", "right", "equal"), "zh": ("左边", "右边", "相等")}
_PARITY = {"en": ("even", "odd"), "zh": ("偶数", "奇数")}


class Kind(NamedTuple):
    """One kind of question.

    Attributes:
        name: Name of the kind in the row's id.
        share: Share of all rows, percent.
        digits: Number of digits in the image.
        question: Text of the question in each language.
        answer: Function that computes the answer from the digits, in a language.
    """

    name: str
    share: int
    digits: int
    question: dict[Language, str]
    answer: Answer


def _digit(digits: Sequence[int], language: Language) -> str:
    return _CHINESE_DIGITS[digits[0]] if language == "zh" else str(digits[0])


def _parity(digits: Sequence[int], language: Language) -> str:
    return _PARITY[language][digits[0] % 2]


def _larger(digits: Sequence[int], language: Language) -> str:
    left, right = digits
    return _LARGER[language][2 if left == right else int(right > left)]


def _sum(digits: Sequence[int], language: Language) -> str:
    return str(sum(digits))


KINDS = (
    Kind("digit", 55, 1, {"en": "Which digit is this?", "zh": "这是哪个数字？"}, _digit),
    Kind("parity", 15, 1, {"en": "Odd or even?", "zh": "奇数还是偶数？"}, _parity),
    Kind("larger", 15, 2, {"en": "Which is larger?", "zh": "哪个更大？"}, _larger),
    Kind("sum", 15, 2, {"en": "What is the sum?", "zh": "和是多少？"}, _sum),
)


@dataclass(frozen=True)
class EmbeddedSet:
    """Paths of the generated set.

    Attributes:
        train_jsonl: File of the 2,000 training rows.
        test_jsonl: File of the 200 test rows.
        image_root: Folder that the image paths in the rows are relative to.
        corrupted_ids: Training rows (positions in the file, from 0) whose answer is wrong on purpose.
    """

    train_jsonl: Path
    test_jsonl: Path
    image_root: Path
    corrupted_ids: tuple[int, ...]


class _Row(NamedTuple):
    part: str
    position: int
    kind: Kind
    language: Language
    digits: tuple[int, ...]
    picture: NDArray[np.uint8]

    @property
    def image(self) -> str:
        return f"images/{self.part}/{self.position:04d}.png"

    def line(self, answer: str) -> str:
        human = {"from": "human", "value": f"<image>\n{self.kind.question[self.language]}"}
        row = {
            "id": f"{self.part}-{self.position:04d}-{self.kind.name}-{self.language}",
            "image": self.image,
            "conversations": [human, {"from": "gpt", "value": answer}],
        }
        return json.dumps(row, ensure_ascii=False) + "\n"

    def right(self) -> str:
        return self.kind.answer(self.digits, self.language)


def make_embedded(root: Path, corrupt: float = 0.0) -> EmbeddedSet:
    """Writes the files of the set that are missing under `root`.

    Args:
        root: Target folder; images are shared by all values of `corrupt`.
        corrupt: Share of training rows, 0 to below 1, whose answer is replaced by another answer to the same kind of
            question; `corrupted_<share>.json` lists these rows.

    Returns:
        The paths of the set.

    Raises:
        InputError: If the share is out of range, or an existing file differs from the one this function writes.
        WorkError: If a file cannot be written.
    """
    if not 0 <= corrupt < 1:
        raise InputError(f"corrupt: expected a share from 0 to below 1, found {corrupt}.\n  0.05 is 5 % of the rows.")
    train_images, train_labels, test_images, test_labels = (
        x.numpy() for x in embedded_digits("the image-text set is made of them").read()
    )
    train = list(_rows("train", train_images, train_labels, TRAIN_ROWS, seed=0))
    test = list(_rows("test", test_images, test_labels, TEST_ROWS, seed=1))
    wrong = _corrupted(train, corrupt)
    tag = f"_corrupt_{corrupt:g}" if corrupt else ""
    made = EmbeddedSet(root / f"train{tag}.jsonl", root / "test.jsonl", root, tuple(wrong))
    for row in (*train, *test):
        if not (path := root / row.image).exists():
            _write(path, _png(row.picture))
    _write_text(made.train_jsonl, "".join(r.line(wrong.get(r.position, r.right())) for r in train))
    _write_text(made.test_jsonl, "".join(r.line(r.right()) for r in test))
    if wrong:
        _write_text(root / f"corrupted_{corrupt:g}.json", json.dumps(list(wrong)) + "\n")
    return made


def _rows(part: str, images: NDArray[np.uint8], labels: NDArray[np.integer], count: int, seed: int) -> Iterator[_Row]:
    """Yields the rows in random order; no image occurs in two rows."""
    draw = random.Random(seed)  # its random() gives the same numbers in every version of Python
    order = iter(_shuffled(range(len(images)), draw))
    kinds = [kind for kind in KINDS for _ in range(kind.share * count // 100)]
    for position, kind in enumerate(_shuffled(kinds, draw)):
        language = LANGUAGES[int(draw.random() * len(LANGUAGES))]
        chosen = [next(order) for _ in range(kind.digits)]
        picture = np.concatenate([images[i] for i in chosen], axis=1)
        yield _Row(part, position, kind, language, tuple(int(labels[i]) for i in chosen), picture)


def _corrupted(rows: Sequence[_Row], share: float) -> dict[int, str]:
    """Draws wrong answers, by position: each is the answer of another row of the same kind and language."""
    draw = random.Random(2)
    chosen = sorted(_shuffled(range(len(rows)), draw)[: round(share * len(rows))])
    wrong = {}
    for position in chosen:
        row = rows[position]
        alike = {r.right() for r in rows if (r.kind.name, r.language) == (row.kind.name, row.language)}
        others = sorted(alike - {row.right()})
        wrong[position] = others[int(draw.random() * len(others))]
    return wrong


def _shuffled(items: Sequence[T], draw: random.Random) -> list[T]:
    keys = [draw.random() for _ in items]
    return [items[i] for i in sorted(range(len(items)), key=keys.__getitem__)]


def _png(picture: NDArray[np.uint8]) -> bytes:
    content = io.BytesIO()
    Image.fromarray(picture).save(content, format="PNG")
    return content.getvalue()


def _write_text(path: Path, text: str) -> None:
    """Writes a text file, or checks that an existing file holds this text.

    Raises:
        InputError: If the existing file holds another text.
    """
    content = text.encode("utf-8")
    if not path.exists():
        _write(path, content)
    elif path.read_bytes() != content:
        raise InputError(
            f"{path} is not the file that ifloo makes there: it was changed.\n"
            "  Delete it to have it made again; rows of your own go in with --data.train_jsonl and --data.test_jsonl."
        )


def _write(path: Path, content: bytes) -> None:
    """Writes a file atomically.

    Raises:
        WorkError: If the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise WorkError(
            f"{path} could not be written: {error.strerror or error}.\n  Name another folder with --data.root."
        ) from error
