"""Reading IDX: gzip or plain by content, and one whole message for each way a file can be wrong."""

import gzip
import hashlib
from pathlib import Path

import numpy as np
import pytest

from ifloo.data.idx import read_idx
from ifloo.errors import InputError

REMEDY = "  Put an intact copy there, or delete it to have it downloaded again."
CONTENT = bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 3, *range(12)])
ZIPPED = gzip.compress(CONTENT, mtime=0)
FLIPPED = ZIPPED[:-8] + bytes([ZIPPED[-8] ^ 1]) + ZIPPED[-7:]  # one bit of the stored CRC


@pytest.mark.parametrize("name", ["images", "images.gz"])
@pytest.mark.parametrize("raw", [CONTENT, ZIPPED], ids=["plain", "gzip"])
def test_content_decides_not_the_name(tmp_path: Path, name: str, raw: bytes):
    (tmp_path / name).write_bytes(raw)
    array = read_idx(tmp_path / name, 3, hashlib.md5(CONTENT).hexdigest())
    np.testing.assert_array_equal(array, np.arange(12, dtype=np.uint8).reshape(2, 2, 3))


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (b"", "expected the IDX magic number 0x00000803 (unsigned bytes, 3 dimensions), found an empty file"),
        (
            bytes([0, 0, 8, 1]) + CONTENT[4:],
            "expected the IDX magic number 0x00000803 (unsigned bytes, 3 dimensions), found 0x00000801",
        ),
        (b"<html>", "expected the IDX magic number 0x00000803 (unsigned bytes, 3 dimensions), found 0x3c68746d"),
        (CONTENT[:10], "expected an IDX header of 16 bytes, found 10 bytes in all"),
        (CONTENT[:-5], "expected 2 x 2 x 3 = 12 bytes of values by its header, found 7"),
        (CONTENT + b"x", "expected 2 x 2 x 3 = 12 bytes of values by its header, found 13"),
        (
            CONTENT[:-1] + b"x",
            "expected content with MD5 d9ff8e7baab2007f6e075931dce93b9a, the published one, "
            "found 83d2be5a279c54f2df412b44585d42ef",
        ),
        (
            ZIPPED[:-12],
            "the gzip data is truncated or corrupt (Compressed file ended before the end-of-stream marker was reached)",
        ),
        (FLIPPED, "the gzip data is truncated or corrupt (CRC check failed)"),
    ],
    ids=["empty", "labels", "html", "header", "short", "long", "md5", "cut gzip", "crc"],
)
def test_what_is_wrong_with_the_file(tmp_path: Path, raw: bytes, problem: str):
    path = tmp_path / "images.gz"
    path.write_bytes(raw)
    with pytest.raises(InputError) as caught:
        read_idx(path, 3, hashlib.md5(CONTENT).hexdigest())
    assert str(caught.value) == f"{path}: {problem}.\n{REMEDY}"


def test_missing_file_and_a_folder_in_its_place(tmp_path: Path):
    with pytest.raises(InputError) as caught:
        read_idx(tmp_path / "labels", 1, remedy="Install it again.")
    assert str(caught.value) == (
        f"{tmp_path}/labels: expected a readable IDX file, found: No such file or directory.\n  Install it again."
    )
    with pytest.raises(InputError) as caught:
        read_idx(tmp_path, 1)
    assert str(caught.value) == f"{tmp_path}: expected a readable IDX file, found: Is a directory.\n{REMEDY}"
