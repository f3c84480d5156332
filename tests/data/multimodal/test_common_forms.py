"""Forms in which image-text data are published: `images`, one JSON array, contents in parts, 12 bits in files of 16."""

import json
import logging

import numpy as np
import pytest
from PIL import Image

from ifloo.data import MultimodalDataModule, MultimodalSet
from ifloo.data.multimodal import images, jsonl_file
from ifloo.errors import InputError
from tests.data.multimodal.rows import conversation, form, turns, write_image, write_jsonl

GREY = np.arange(1, 13, dtype=np.uint8).reshape(3, 4)
PLAIN = conversation("which?", "this", image="a.png")


@pytest.fixture
def root(tmp_path):
    write_image(tmp_path / "a.png", GREY)
    write_image(tmp_path / "b.png", GREY + 100)
    return tmp_path


def read(root, rows, name="rows.jsonl", **changes):
    return MultimodalSet(write_jsonl(root / name, rows), form(root, **changes))


def equal(a, b):
    return all((a[k] == b[k]).all() for k in a if k != "sample_index")


def test_images_in_place_of_image(root):
    several = {"conversations": turns("which?", "this"), "images": ["a.png"]}
    assert equal(read(root, [several])[0], read(root, [PLAIN], "other.jsonl")[0])
    two = {"conversations": turns("which?", "this"), "images": ["a.png", "b.png"]}
    assert read(root, [two])[0]["image_flags"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (PLAIN | {"images": ["b.png"]}, "expected a key image or images, found both"),
        (
            {"conversations": turns("which?", "this"), "images": [{"bytes": "x"}]},
            "images: expected a path or a list of paths, found a list with an object",
        ),
    ],
)
def test_images_that_cannot_be_understood_are_named(root, row, message):
    with pytest.raises(InputError) as caught:
        read(root, [row])
    assert f"line 1: {message}.\n" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [("img", "a.png"), ("files", ["a.png"]), ("image_path", "a"), ("photos", [{"path": "a.png"}])],
)
def test_images_under_another_key_are_not_passed_over_in_silence(root, caplog, key, value):
    more = {"id": "7", "url": "http://x/y", "image_width": 3, "images_of_turn": [], "source": ["a.png", "b.txt"]}
    rows, shown = [{"conversations": turns("which?", "this"), key: value, **more}] * 4, repr(key)
    data = MultimodalDataModule(*2 * [str(write_jsonl(root / "rows.jsonl", rows))])
    with caplog.at_level(logging.WARNING):
        data.setup()
    assert caplog.messages == [
        f"0 of 4 {part} rows have an image: what the rows hold under {shown} is not read; name the key of the images "
        f"by fields, as in {{image: {key}}}"
        for part in ("train", "test")
    ]


def test_a_key_that_is_named_is_read(root, caplog):
    path = write_jsonl(root / "rows.jsonl", [{"conversations": turns("which?", "this"), "img": "a.png"}])
    data = MultimodalDataModule(*2 * [str(path)], fields={"image": "img"})
    with caplog.at_level(logging.WARNING):
        data.setup()
    assert not caplog.messages
    assert data.train_set[0]["image_flags"].tolist() == [1]


@pytest.mark.parametrize("written", [{}, {"indent": 2}], ids=["one line", "pretty-printed"])
@pytest.mark.parametrize("kept", [True, False])
def test_a_file_that_is_one_json_array_is_read(root, monkeypatch, written, kept):
    monkeypatch.setattr("ifloo.data.multimodal.dataset.CACHE_BYTES", 1 << 20 if kept else 0)
    rows = [PLAIN, conversation("and é now?", "that", image="b.png"), conversation("none", "no")]
    path = root / "rows.json"
    path.write_text("\ufeff" + json.dumps(rows, ensure_ascii=False, **written), encoding="utf-8")
    found, expected = MultimodalSet(path, form(root)), read(root, rows)
    assert found.ids.tolist() == [0, 1, 2]
    assert all(equal(found[i], expected[i]) for i in range(3))
    assert found.question(1) == "and é now?"
    assert found.content_sha256() == expected.content_sha256()


def test_a_bad_row_of_an_array_is_named_by_its_position(root):
    path = root / "rows.json"
    path.write_text(json.dumps([PLAIN, 3]))
    with pytest.raises(InputError, match=r"rows\.json, element 2: expected an object \{\.\.\.\}, found a number\."):
        MultimodalSet(path, form(root))


def test_an_array_that_is_broken_or_too_large_is_named_as_such(root, monkeypatch):
    path = root / "rows.json"
    path.write_text(json.dumps([PLAIN])[:-1])
    with pytest.raises(InputError, match=r"begins as a JSON array and is none: .*\n  Correct it\. .*jq -c") as caught:
        MultimodalSet(path, form(root))
    path.write_text(json.dumps([PLAIN] * 3))
    monkeypatch.setattr(jsonl_file, "ARRAY_BYTES", 100)
    with pytest.raises(InputError) as caught:
        MultimodalSet(path, form(root))
    assert str(caught.value) == (
        f"{path} is one JSON array of 0.0 GiB, which would have to be read whole.\n"
        "  Write one object a line: jq -c '.[]' rows.json > rows.jsonl."
    )


def chat(content, **more):
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "this"}], **more}


TEXT = {"type": "text", "text": "which?"}


@pytest.mark.parametrize(
    "row",
    [
        chat([{"type": "image"}, TEXT], image="a.png"),
        chat([{"type": "image"}, TEXT], images=["a.png"]),
        chat([{"type": "image", "image": "a.png"}, TEXT]),
        chat([{"type": "image", "path": "a.png"}, TEXT]),
        chat([{"type": "image_url", "image_url": {"url": "a.png"}}, TEXT]),
        chat(
            [
                {"type": "image", "image": "a.png", "text": None},
                {"type": "text", "text": "wh"},
                {**TEXT, "text": "ich?"},
            ]
        ),
    ],
)
def test_a_content_in_parts_is_understood(root, row):
    row["messages"][1]["content"] = [{"type": "text", "text": "this"}]
    expected = read(root, [chat("<image>which?", image="a.png")], "plain.jsonl")[0]
    assert equal(read(root, [row])[0], expected)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"type": "video"}, TEXT], "messages[0].content[0].type: expected text or image, found 'video'"),
        ([{"type": "text"}], "messages[0].content[0].text: expected text, found null"),
        ([{"type": "image", "image": 3}], "messages[0].content[0].image: expected a path, found a number"),
        ([{"type": "image", "path": ""}], "messages[0].content[0].path: expected a path, found an empty one"),
        ([TEXT, "x"], "messages[0].content: expected text, found a list"),
        ([], "messages[0].content: expected text, found a list"),
        ([{"type": "image"}, TEXT], "expected one <image> per image, found 1 marker and 0 images"),
    ],
)
def test_parts_that_cannot_be_understood_are_named(root, content, message):
    with pytest.raises(InputError) as caught:
        read(root, [chat(content)])
    assert f"line 1: {message}.\n" in str(caught.value)


def test_images_in_parts_and_in_the_row_are_refused(root):
    row = chat([{"type": "image", "image": "a.png"}, TEXT], image="a.png")
    with pytest.raises(InputError, match="expected images in image or in the parts of a turn, found both"):
        read(root, [row])


def test_twelve_bits_in_a_file_of_sixteen_are_told_once(tmp_path, caplog):
    images._warn_of_depth.cache_clear()
    for name in ("a.png", "b.png"):
        Image.fromarray(GREY.astype(np.uint16) * 300).save(tmp_path / name)  # up to 3,600
    Image.fromarray(GREY.astype(np.uint16) * 5000).save(tmp_path / "c.png")
    with caplog.at_level(logging.WARNING):
        for name in ("a.png", "b.png", "c.png"):
            images.read_image(name, tmp_path, 3, 4, 1)
    assert caplog.messages == [
        "an image of 16 bits a channel has values of 12 bits only and comes out nearly black: if its camera or scanner "
        "gives 12 bits, multiply the values by 16 and write the files again."
    ]
