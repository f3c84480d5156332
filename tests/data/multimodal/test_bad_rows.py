"""One row for each way a row can be bad: the whole message, and what is left when bad rows are skipped."""

from pathlib import Path
from typing import Any

import pytest

from ifloo.data import MultimodalSet
from ifloo.errors import InputError
from tests.data.multimodal.rows import as_bytes, conversation, form, turns, write_jsonl

CORRECT, RENAME = "Correct the row", "Correct the row, or name its keys by fields"
PUT, ROOT = "Put an intact image there or correct the row", "set image_root to the folder that holds all images"
GOOD = conversation("<image>\nWhat is it?", "a cat", image="a.png")


def chat(*pairs: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


def human(value: Any, gpt: Any = "b", **more: Any) -> dict[str, Any]:
    return {"conversations": [{"from": "human", "value": value}, {"from": "gpt", "value": gpt}], **more}


ROLES = "expected one of human, gpt, user, assistant, system"
BAD: dict[str, tuple[Any, str, str]] = {
    "no JSON": (b'{"conversations": [}', "expected JSON, found: Expecting value at column 20", CORRECT),
    "torn": (as_bytes(GOOD)[:-9], "expected JSON, found: Expecting value at column 116", CORRECT),
    "two rows": (b"{} {}", "expected JSON, found: Extra data at column 4", CORRECT),
    "no UTF-8": (b'{"image": "\xff"}', "expected UTF-8, found 0xff (byte 12 of the line)", CORRECT),
    "a list": (b"[1]", "expected an object {...}, found a list", CORRECT),
    "null": (b"null", "expected an object {...}, found null", CORRECT),
    "no turns": (
        {"id": 1, "text": "x"},
        "expected a key conversations or messages, found the keys 'id', 'text'",
        RENAME,
    ),
    "no key": ({}, "expected a key conversations or messages, found no key", RENAME),
    "both forms": (conversation("a", "b") | chat(), "expected a key conversations or messages, found both", RENAME),
    "turns are text": ({"messages": "hi"}, "messages: expected a list of turns, found text", CORRECT),
    "a turn is text": ({"messages": ["hi"]}, "messages[0]: expected an object {...}, found text", CORRECT),
    "no speaker": ({"conversations": [{"value": "a"}]}, "conversations[0]: expected a key from, found none", RENAME),
    "no text": ({"messages": [{"role": "user"}]}, "messages[0]: expected a key content, found none", RENAME),
    "a number said": (human(1), "conversations[0].value: expected text, found a number", CORRECT),
    "parts said": (chat(("user", [{}])), "messages[0].content: expected text, found a list", CORRECT),
    "a role of null": (chat((None, "a")), "messages[0].role: expected text, found null", CORRECT),
    "unknown role": (chat(("tool\x1b", "a")), f"messages[0].role: {ROLES}, found 'tool\\x1b'", CORRECT),
    "no assistant": (
        {"conversations": turns("a")},
        "expected a turn of the assistant (gpt or assistant), found none",
        CORRECT,
    ),
    "empty answer": (human("a", " \n"), "conversations[1].value: expected an answer, found an empty one", CORRECT),
    "half a character": (
        b'{"conversations": [{"from": "human", "value": "\\ud83d"}]}',
        "conversations[0].value: expected Unicode text, found half of a surrogate pair, \\ud83d",
        CORRECT,
    ),
    "image is a number": (human("a", image=3), "image: expected a path or a list of paths, found a number", CORRECT),
    "image is true": (
        human("a", image=True),
        "image: expected a path or a list of paths, found true or false",
        CORRECT,
    ),
    "images of null": (
        human("a", image=["a.png", None]),
        "image: expected a path or a list of paths, found a list with null",
        CORRECT,
    ),
    "image is empty": (human("a", image=""), "image: expected a path, found an empty one", CORRECT),
    "too many markers": (
        human("<image><image>", image="a.png"),
        "expected one <image> per image, found 2 markers and 1 image",
        CORRECT,
    ),
    "too few markers": (
        human("<image>", image=["a.png"] * 2),
        "expected one <image> per image, found 1 marker and 2 images",
        CORRECT,
    ),
    "a marker without image": (
        human("<image>"),
        "expected one <image> per image, found 1 marker and 0 images",
        CORRECT,
    ),
    "a marker in an answer": (
        human("a", "<image>", image="a.png"),
        "expected <image> in questions only, found it in an answer",
        CORRECT,
    ),
    "nowhere to show it": (
        chat(("assistant", "a")) | {"image": "a.png"},
        "expected a turn of the user to show 1 image in, found none",
        CORRECT,
    ),
    "missing image in Chinese": (
        human("a", image="猫.png"),
        "image '猫.png': expected a file in ROOT, found none",
        PUT,
    ),
    "missing image": (human("a", image="no.png"), "image 'no.png': expected a file in ROOT, found none", PUT),
    "outside": (
        human("a", image="../x.png"),
        "image '../x.png': expected a path below ROOT, found one that leaves it",
        f"{CORRECT}, or {ROOT}",
    ),
    "absolute": (
        human("a", image="/etc/passwd"),
        "image '/etc/passwd': expected a path below ROOT, found one that leaves it",
        f"{CORRECT}, or {ROOT}",
    ),
    "corrupt image": (
        human("a", image="broken.png"),
        "image 'broken.png': expected PNG, JPEG, WEBP, BMP, GIF, TIFF, PPM, found an image that cannot be decoded "
        "(cannot identify image file 'broken.png')",
        PUT,
    ),
    "too many images": (
        human("a", image=["a.png"] * 40),
        "expected a row that fits into max_seq_len 64, found 84 tokens that cannot be cut, 80 of them for images",
        "Raise max_seq_len to 84 or more, or lower num_image_tokens",
    ),
}


@pytest.fixture
def root(folder: Path) -> Path:
    (folder / "broken.png").write_text("no image")
    return folder


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_row_is_an_error(root: Path, kind: str):
    row, reason, step = BAD[kind]
    path = write_jsonl(root / "bad.jsonl", [GOOD, b"", row, GOOD])
    with pytest.raises(InputError) as caught:
        MultimodalSet(path, form(root))
    assert str(caught.value) == (
        f"{path}, line 3: {reason.replace('ROOT', str(root))}.\n  {step}, or leave bad rows out with on_bad_row: skip."
    )


@pytest.mark.parametrize("kept", [True, False])
def test_bad_rows_are_skipped_and_listed(root: Path, monkeypatch: pytest.MonkeyPatch, kept: bool):
    monkeypatch.setattr("ifloo.data.multimodal.dataset.CACHE_BYTES", 1 << 20 if kept else 0)
    path = write_jsonl(root / "bad.jsonl", [GOOD, *(row for row, _, _ in BAD.values()), GOOD])
    rows = MultimodalSet(path, form(root), on_bad_row="skip")
    assert rows.ids.tolist() == [0, len(BAD) + 1]
    assert [(bad.file, bad.line, bad.reason) for bad in rows.skipped] == [
        (str(path), line, reason.replace("ROOT", str(root))) for line, (_, reason, _) in enumerate(BAD.values(), 2)
    ]
    assert torch_equal_rows(rows)


def torch_equal_rows(rows: MultimodalSet) -> bool:
    first, last = rows[0], rows[1]
    return all(bool((first[name] == last[name]).all()) for name in first if name != "sample_index")


@pytest.mark.parametrize(
    "broken", [b'{"messages": ' + b"[" * 100_000, b'{"id": ' + b"9" * 5000 + b"}"], ids=["deep", "long"]
)
def test_json_that_python_refuses(root: Path, broken: bytes):
    path = write_jsonl(root / "bad.jsonl", [GOOD, broken])
    (bad,) = MultimodalSet(path, form(root), on_bad_row="skip").skipped
    assert bad.reason.startswith("expected JSON, found: ")


def test_broken_pixels_are_found_when_the_batch_is_made(root: Path, monkeypatch: pytest.MonkeyPatch):
    """Where not everything fits in memory, and skipping was not asked for."""
    monkeypatch.setattr("ifloo.data.multimodal.dataset.CACHE_BYTES", 0)
    row, reason, step = BAD["corrupt image"]
    rows = MultimodalSet(write_jsonl(root / "bad.jsonl", [GOOD, row]), form(root))
    assert rows.__getitems__([0])["image_flags"].tolist() == [[1]]
    with pytest.raises(InputError) as caught:
        rows.__getitems__([0, 1])
    assert str(caught.value) == (
        f"{root}/bad.jsonl, line 2: {reason}.\n  {step}, or leave bad rows out with on_bad_row: skip."
    )


def test_nothing_but_bad_rows(root: Path):
    path = write_jsonl(root / "bad.jsonl", [b"x", b"", b"[]"])
    with pytest.raises(InputError) as caught:
        MultimodalSet(path, form(root), on_bad_row="skip")
    assert str(caught.value) == (
        f"{path}: all 2 rows are bad, the first at line 1: expected JSON, found: Expecting value at column 1.\n"
        "  Check fields and image_root: they may not be those of this file."
    )


@pytest.mark.parametrize("content", [b"", b"\n\r\n", b"\xef\xbb\xbf"])
def test_no_row_at_all(root: Path, content: bytes):
    path = root / "none.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        MultimodalSet(path, form(root), on_bad_row="skip")
    assert str(caught.value) == (f"{path}: expected a row in each line, found no row at all.\n  Give a file with rows.")


@pytest.mark.parametrize(("name", "found"), [("no.jsonl", "No such file or directory"), ("sub", "Is a directory")])
def test_no_file(root: Path, name: str, found: str):
    with pytest.raises(InputError) as caught:
        MultimodalSet(root / name, form(root), setting="train_jsonl")
    assert str(caught.value) == (
        f"train_jsonl: expected a jsonl file, found: {found}: {root / name}.\n  Give the path of one."
    )
