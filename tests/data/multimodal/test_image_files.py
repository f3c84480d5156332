"""Images as arrays: what happens to size, transparency, rotation and depth, and what is refused."""

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ifloo.data.multimodal.images import locate, read_image
from ifloo.data.multimodal.row import BadRowError
from tests.data.multimodal.rows import write_image

GREY = np.arange(1, 13, dtype=np.uint8).reshape(3, 4)
COLOUR = np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8)


def read(path: Path, height: int = 4, width: int = 6, channels: int = 1) -> np.ndarray:
    return read_image(path.name, path.parent, height, width, channels)


def test_a_small_image_keeps_its_size_and_stands_top_left(tmp_path: Path):
    expected = np.zeros((1, 4, 6), np.uint8)
    expected[0, :3, :4] = GREY
    np.testing.assert_array_equal(read(write_image(tmp_path / "a.png", GREY)), expected)


def test_a_large_image_becomes_means_of_its_pixels(tmp_path: Path):
    large = np.kron(GREY, [[1, 3], [3, 5]]).astype(np.uint8)  # each block of four has the mean 3 x
    np.testing.assert_array_equal(read(write_image(tmp_path / "a.png", large), 3, 4)[0], 3 * GREY)
    wide = read(write_image(tmp_path / "b.png", np.full((4, 40), 9)), 8, 8)  # the ratio stays
    np.testing.assert_array_equal(np.argwhere(wide[0]).max(0), [0, 7])


def test_colour_to_grey_and_back(tmp_path: Path):
    path = write_image(tmp_path / "a.png", COLOUR)
    np.testing.assert_array_equal(read(path, 3, 4, 3), COLOUR.transpose(2, 0, 1))
    np.testing.assert_array_equal(read(path, 3, 4)[0], np.asarray(Image.fromarray(COLOUR).convert("L")))
    grey = read(write_image(tmp_path / "b.png", GREY), 3, 4, 3)
    np.testing.assert_array_equal(grey, np.stack([GREY] * 3))


def test_what_is_transparent_is_white(tmp_path: Path):
    clear = np.dstack([COLOUR, np.full((3, 4), 255, np.uint8)])
    clear[0, 0, 3] = 0
    expected = COLOUR.copy()
    expected[0, 0] = 255
    np.testing.assert_array_equal(read(write_image(tmp_path / "a.png", clear), 3, 4, 3), expected.transpose(2, 0, 1))
    Image.fromarray(GREY).save(tmp_path / "b.png", transparency=5)
    np.testing.assert_array_equal(read(tmp_path / "b.png", 3, 4)[0], np.where(GREY == 5, 255, GREY))
    palette = Image.fromarray(COLOUR).quantize(8)
    palette.save(tmp_path / "c.gif", transparency=palette.getpixel((0, 0)))
    assert read(tmp_path / "c.gif", 3, 4, 3)[:, 0, 0].tolist() == [255] * 3


def test_rotation_in_exif_is_applied(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned right by 90 degrees
    path = write_image(tmp_path / "a.png", GREY, exif=exif)
    np.testing.assert_array_equal(read(path, 4, 3)[0], np.rot90(GREY, -1))


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path):
    Image.fromarray(GREY.astype(np.uint16) * 257).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read(tmp_path / "a.png", 3, 4)[0], GREY)


@pytest.mark.parametrize("name", ["a.bmp", "a.gif", "a.ppm", "a.tiff", "a.webp", "a.jpg"])
def test_formats(tmp_path: Path, name: str):
    path = write_image(tmp_path / name, np.full((3, 4), 100), **({"lossless": True} if name == "a.webp" else {}))
    np.testing.assert_array_equal(read(path, 3, 4)[0], 100)


DECODE = "expected PNG, JPEG, WEBP, BMP, GIF, TIFF, PPM, found an image that cannot be decoded"


def test_what_is_no_image(tmp_path: Path):
    whole = write_image(tmp_path / "whole.png", COLOUR).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[:-30])
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "drawing.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    (tmp_path / "empty.png").touch()
    Image.fromarray(GREY.astype(np.float32)).save(tmp_path / "real.tiff")
    for name, said in [
        ("cut.png", "image file is truncated"),
        ("text.png", "cannot identify image file 'text.png'"),
        ("drawing.eps", "cannot identify image file 'drawing.eps'"),  # it would start a program
        ("empty.png", "cannot identify image file 'empty.png'"),
        ("real.tiff", "32 bits a channel, of unknown range"),
    ]:
        with pytest.raises(BadRowError) as caught:
            read(tmp_path / name)
        assert caught.value.reason.partition(" (")[0] == f"image '{name}': {DECODE}"
        assert said in caught.value.reason
        assert caught.value.step == "Put an intact image there or correct the row"


@pytest.mark.parametrize("side", [12, 20])  # beyond the limit Pillow warns, beyond twice the limit it refuses
def test_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: int):
    path = write_image(tmp_path / "a.png", np.ones((side, 10)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(BadRowError, match=r"^image 'a.png': expected at most 100 pixels, found more$"):
            read(path)


def test_no_memory_is_not_the_fault_of_the_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise MemoryError

    path = write_image(tmp_path / "a.png", GREY)
    monkeypatch.setattr("ifloo.data.multimodal.images._pixels", full)
    with pytest.raises(MemoryError):
        read(path)


def test_no_name_leaves_the_folder(tmp_path: Path):
    root = tmp_path / "root"
    secret = write_image(tmp_path / "secret.png", GREY)
    inside = write_image(root / "in" / "a.png", GREY)
    os.symlink(secret, root / "link.png")
    os.symlink(tmp_path, root / "up")
    os.symlink(inside, root / "fine.png")
    os.symlink("loop.png", root / "loop.png")
    os.symlink(root, tmp_path / "root_too")
    for name in ("in/a.png", "in/../in/a.png", str(inside), "fine.png"):
        assert locate(name, root) == locate(name, tmp_path / "root_too") == inside
    leaves = f"expected a path below {root}, found one that leaves it"
    absent = f"expected a file in {root}, found none"
    for name, reason in [
        ("../secret.png", leaves),
        ("in/../../secret.png", leaves),
        (str(secret), leaves),
        ("link.png", leaves),
        ("up/secret.png", leaves),
        ("../root_two/a.png", leaves),
        ("b.png", absent),
        ("in", absent),
        (".", absent),
        ("loop.png", absent),
        ("x" * 300, absent),
        ("https://example.org/a.png", absent),
        ("a\0.png", "expected a path, found: embedded null byte"),
    ]:
        with pytest.raises(BadRowError) as caught:
            locate(name, root)
        assert caught.value.reason == f"image {name!r}: {reason}"
