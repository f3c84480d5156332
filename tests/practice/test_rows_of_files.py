"""Files of conversations in forms that other tools write: read, or refused by the name of what differs."""

import json

import numpy as np
import pytest

from ifloo.data import MultimodalDataModule
from ifloo.errors import InputError
from tests.data.multimodal.rows import conversation, write_image, write_jsonl


def read(folder, rows):
    for part in ("train", "test"):
        if isinstance(rows, bytes):
            (folder / f"{part}.jsonl").write_bytes(rows)
        else:
            write_jsonl(folder / f"{part}.jsonl", rows)
    write_image(folder / "a.png", np.arange(24).reshape(4, 6) * 10)
    data = MultimodalDataModule(
        train_jsonl=str(folder / "train.jsonl"),
        test_jsonl=str(folder / "test.jsonl"),
        image_root=str(folder),
        image_size=[4, 6],
        num_image_tokens=2,
    )
    data.prepare_data()
    data.setup()
    return data


def turns(question="which?"):
    return {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": "this"}]}


def outcome(folder, rows):
    """Returns the data and no error, or no data and the text of the error."""
    try:
        return read(folder, rows), ""
    except InputError as error:
        return None, str(error)


def test_a_key_of_images_that_is_not_read_is_named(tmp_path, caplog):
    """A file whose images are under a key that no setting names has no image in any row."""
    data, error = outcome(tmp_path, [{"images": ["a.png"], **turns()}] * 4)
    read_as_image = data is not None and all(bool(row["image_flags"].all()) for row in data.train_set)
    assert read_as_image or "images" in error + caplog.text.replace("_images", "")


@pytest.mark.parametrize("indent", [None, 2])
def test_one_array_of_rows_is_read_or_its_conversion_is_shown(indent, tmp_path):
    rows = [conversation("<image>\nwhich?", "this", image="a.png")] * 4
    data, error = outcome(tmp_path, json.dumps(rows, indent=indent).encode())
    if data is None:
        assert "array" in error
        assert "jq -c '.[]'" in error
    else:
        assert len(data.train_set) == 4


def test_content_as_a_list_of_parts_is_understood(tmp_path):
    parts = [{"type": "image"}, {"type": "text", "text": "which?"}]
    chat = [{"role": "user", "content": parts}, {"role": "assistant", "content": [{"type": "text", "text": "this"}]}]
    of_parts = read(tmp_path, [{"image": "a.png", "messages": chat}] * 4)
    (tmp_path / "plain").mkdir()
    plain = read(tmp_path / "plain", [conversation("<image>which?", "this", image="a.png")] * 4)
    first, second = of_parts.train_set[0], plain.train_set[0]
    assert first.keys() == second.keys()
    assert all(np.array_equal(np.asarray(first[key]), np.asarray(second[key])) for key in first)
