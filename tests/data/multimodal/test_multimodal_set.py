"""The set of rows: whole batches, the same from memory as from files, and what is shown of a row."""

import codecs
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from ifloo.data import ByteTokenizer, MultimodalSet
from ifloo.errors import InputError
from tests.data.multimodal.conftest import IDS, ROWS
from tests.data.multimodal.rows import IMAGE, PAD, as_bytes, conversation, form, turns, write_image, write_jsonl

BYTES = ByteTokenizer()


@pytest.fixture(params=["kept", "read"])
def rows(folder: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> MultimodalSet:
    """The five rows, in memory and read from the files each time."""
    monkeypatch.setattr("ifloo.data.multimodal.dataset.CACHE_BYTES", 1 << 20 if request.param == "kept" else 0)
    made = MultimodalSet(folder / "rows.jsonl", form(folder))
    assert (made._kept is None) == (request.param == "read")
    return made


def shapes(batch: dict[str, torch.Tensor]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    return {name: (column.dtype, tuple(column.shape)) for name, column in batch.items()}


def test_a_batch(rows: MultimodalSet, folder: Path):
    assert (len(rows), rows.ids.tolist(), rows.ids.dtype) == (5, IDS, torch.int64)
    batch = rows.__getitems__([2, 0, 4])
    assert shapes(batch) == {
        "input_ids": (torch.int64, (3, 35)),
        "labels": (torch.int64, (3, 35)),
        "attention_mask": (torch.int64, (3, 35)),
        "answer_positions": (torch.int64, (3, 15)),
        "pixel_values": (torch.float64, (3, 2, 1, 4, 6)),
        "image_flags": (torch.int64, (3, 2)),
        "sample_index": (torch.int64, (3,)),
    }
    assert batch["attention_mask"].sum(1).tolist() == [26, 23, 11]  # the longest row is the one in Chinese
    assert batch["sample_index"].tolist() == [3, 0, 5]
    assert batch["image_flags"].tolist() == [[1, 1], [1, 0], [0, 0]]
    assert (batch["input_ids"] == IMAGE).sum(1).tolist() == [4, 2, 0]
    assert ((batch["input_ids"] == PAD) == (batch["attention_mask"] == 0)).all()
    learned = [BYTES.decode(labels.tolist()) for labels in batch["labels"]]
    assert learned == ["Hino", "a cat", "2"]
    for labels, positions in zip(batch["labels"], batch["answer_positions"], strict=True):
        assert [k - 1 for k, label in enumerate(labels.tolist()) if label != -100] == positions[positions >= 0].tolist()
    pixels = batch["pixel_values"]
    np.testing.assert_array_equal(pixels[0, 1, 0].numpy(), np.asarray(Image.open(folder / "c.png")) / 255)
    assert torch.equal(pixels[0, 0], pixels[1, 0])
    assert not pixels[1, 1].any()
    assert not pixels[2].any()


@pytest.mark.parametrize("wanted", [[0, 1, 2, 3, 4], [4, 2, 2], [1], [], range(1, 3)])
def test_a_batch_equals_its_samples(rows: MultimodalSet, wanted):
    batch = rows.__getitems__(wanted)
    for name, column in batch.items():
        assert len(column) == len(wanted)
        for i, row in enumerate(wanted):
            torch.testing.assert_close(column[i], rows[row][name], rtol=0, atol=0)


@pytest.mark.parametrize("outside", [-1, 5])
def test_a_row_that_does_not_exist(rows: MultimodalSet, outside: int):
    with pytest.raises(IndexError, match=rf"^row {outside} of 5$"):
        rows.__getitems__([0, outside])


def test_memory_does_not_show(folder: Path, monkeypatch: pytest.MonkeyPatch):
    kept = MultimodalSet(folder / "rows.jsonl", form(folder))
    monkeypatch.setattr("ifloo.data.multimodal.dataset.CACHE_BYTES", 0)
    read = MultimodalSet(folder / "rows.jsonl", form(folder))
    for name, column in kept.__getitems__(range(5)).items():
        torch.testing.assert_close(column, read.__getitems__(range(5))[name], rtol=0, atol=0)
    assert kept.content_sha256() == read.content_sha256()


@pytest.mark.parametrize("workers", [0, 2])
def test_loaders_with_and_without_processes(rows: MultimodalSet, workers: int):
    loader = DataLoader(pickle.loads(pickle.dumps(rows)), 2, num_workers=workers, collate_fn=lambda batch: batch)
    batches = list(loader)
    assert [batch["sample_index"].tolist() for batch in batches] == [[0, 2], [3, 4], [5]]
    together = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    for name, column in rows.__getitems__(range(5)).items():
        torch.testing.assert_close(together[name], column, rtol=0, atol=0)


def test_what_is_shown_of_a_row(rows: MultimodalSet, folder: Path):
    assert rows.rows([5, 0]) == [4, 0]
    with pytest.raises(KeyError, match=r"^1$"):
        rows.rows([0, 1])
    np.testing.assert_array_equal(rows.picture(2), np.asarray(Image.open(folder / "sub/b.png")))
    assert [picture.shape for picture in rows.pictures(3)] == [(4, 6)] * 2
    assert (rows.picture(4), rows.pictures(5)) == (None, [])
    assert (rows.question(0), rows.answer(0)) == ("What is it?", "a cat")
    assert (rows.question(3), rows.answer(3)) == ("Same?", "no")
    assert rows.caption(2) == "这是什么？ -> 一只猫 🐈"


def test_colour_pictures_and_float32(folder: Path):
    colour = np.random.default_rng(1).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    write_image(folder / "a.png", colour)
    rows = MultimodalSet(folder / "rows.jsonl", form(folder, channels=3), dtype="float32")
    np.testing.assert_array_equal(rows.picture(0), colour)
    assert rows[0]["pixel_values"].dtype == torch.float32
    expected = colour.transpose(2, 0, 1).astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(rows[0]["pixel_values"][0].numpy(), expected)


@pytest.mark.parametrize(
    ("question", "answer", "caption"),
    [
        ("Is\tit\na \x1b[31mcat?", "yes\r\nit is", "Is it a [31mcat? -> yes it is"),
        ("q" * 50, "a" * 50, "q" * 19 + "… -> " + "a" * 19 + "…"),
        ("q" * 50, "a", "q" * 38 + "… -> a"),
        ("", "a", " -> a"),
    ],
)
def test_captions_are_one_short_line(tmp_path: Path, question: str, answer: str, caption: str):
    path = write_jsonl(tmp_path / "rows.jsonl", [conversation(question, answer)])
    assert MultimodalSet(path, form(tmp_path, max_seq_len=200)).caption(0) == caption


def test_other_field_names(folder: Path):
    names = {"image": "img", "conversations": "dialog", "from": "speaker", "value": "text"}
    dialog = [{"speaker": turn["from"], "text": turn["value"]} for turn in turns("<image>\nWhat is it?", "a cat")]
    path = write_jsonl(folder / "other.jsonl", [{"img": "a.png", "dialog": dialog, "image": 3}])
    other = MultimodalSet(path, form(folder, fields=names))
    expected = MultimodalSet(folder / "rows.jsonl", form(folder), limit=1)
    for name, column in other[0].items():
        torch.testing.assert_close(column, expected[0][name], rtol=0, atol=0)


def test_byte_order_mark_and_windows_lines(folder: Path):
    windows = folder / "windows.jsonl"
    windows.write_bytes(codecs.BOM_UTF8 + b"\r\n".join(map(as_bytes, ROWS)))
    rows = MultimodalSet(windows, form(folder))
    assert rows.ids.tolist() == IDS
    assert rows.content_sha256() == MultimodalSet(folder / "rows.jsonl", form(folder)).content_sha256()
    assert [rows.answer(id_) for id_ in IDS] == ["a cat", "一只猫 🐈", "no", "assistant", "2"]


@pytest.mark.parametrize("limit", [1, 3, 5, 9])
def test_a_limit_counts_usable_rows_and_keeps_ids(folder: Path, limit: int):
    path = write_jsonl(folder / "some.jsonl", [ROWS[0], b"[]", *ROWS[1:], b"never looked at"])
    if limit < 9:
        rows = MultimodalSet(path, form(folder), limit=limit, on_bad_row="skip")
        assert rows.ids.tolist() == [0, 3, 4, 5, 6][:limit]
        assert len(rows.skipped) == (limit > 1)
    else:
        assert len(MultimodalSet(path, form(folder), limit=limit, on_bad_row="skip").skipped) == 2


def test_long_rows_are_cut_and_counted(folder: Path):
    rows = MultimodalSet(folder / "rows.jsonl", form(folder, max_seq_len=20))
    assert (rows.rows_cut, rows.seq_len) == (4, 20)
    learned = [BYTES.decode(labels.tolist()) for labels in rows.__getitems__(range(5))["labels"]]
    assert learned == ["a cat", "一只猫 🐈", "Hino", "assistant", "2"]


def test_a_file_that_changes_while_in_use(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ifloo.data.multimodal.dataset.CACHE_BYTES", 0)
    rows = MultimodalSet(folder / "rows.jsonl", form(folder))
    os.utime(rows.file.path, ns=(0, 1))
    with pytest.raises(InputError) as caught:
        rows.__getitems__([0])
    assert str(caught.value) == (
        f"{folder}/rows.jsonl has changed while it was in use.\n  Start again and leave it unchanged."
    )


def test_content_sha256_tells_what_changes_numbers(folder: Path):
    def of(**settings) -> str:
        own = {name: settings.pop(name) for name in ("limit", "dtype", "on_bad_row") if name in settings}
        return MultimodalSet(folder / "rows.jsonl", form(folder, **settings), **own).content_sha256()

    before = of()
    assert before == of(dtype="float32") == of(on_bad_row="skip") == of(limit=5)
    changed = {"limit": 4}, {"height": 5}, {"channels": 3}, {"num_image_tokens": 3}, {"max_seq_len": 63}
    assert len({before, *(of(**change) for change in changed), of(fields={"image": "image", "value": "value"})}) == 6
    write_image(folder / "c.png", np.zeros((4, 6)))
    assert of() != before
    (folder / "c.png").unlink()
    rows = MultimodalSet(folder / "rows.jsonl", form(folder), limit=2)
    (folder / "a.png").unlink()
    with pytest.raises(InputError) as caught:
        rows.content_sha256()
    assert str(caught.value) == (
        f"{folder}/rows.jsonl, line 1: image 'a.png': expected a file in {folder}, found none.\n"
        "  Put an intact image there or correct the row, or leave bad rows out with on_bad_row: skip."
    )
