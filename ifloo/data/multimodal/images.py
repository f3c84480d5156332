"""Image files as arrays of one size: restricted to one folder, decoded by Pillow, refused if the content is unclear."""

from __future__ import annotations

import logging
import os
import warnings
from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from ifloo.data.multimodal.row import BadRowError

log = logging.getLogger(__name__)

# Pillow reads more formats, but some of them start other programs.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
DARK_BITS = 12  # images of 16 bits without values of more bits are nearly black
SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N")


def locate(name: str, root: Path) -> Path:
    """Returns the path of an image file, with symbolic links resolved.

    Args:
        name: Path relative to `root`, or an absolute path below it.
        root: Folder that no image path may leave.

    Raises:
        BadRowError: If the path leaves the folder, or the file does not exist.
    """
    real_root = os.path.realpath(root)
    try:
        path = os.path.realpath(os.path.join(real_root, name))
    except ValueError as error:  # a zero byte
        raise BadRowError(f"image {name!r}: expected a path, found: {error}") from error
    if os.path.commonpath([path, real_root]) != real_root:
        raise BadRowError(f"image {name!r}: expected a path below {root}, found one that leaves it", _ROOT)
    if not os.path.isfile(path):
        raise BadRowError(f"image {name!r}: expected a file in {root}, found none", _PUT)
    return Path(path)


def read_image(name: str, root: Path, height: int, width: int, channels: int) -> UInt8[np.ndarray, "c h w"]:
    """Reads an image as pixels 0..255, placed top left on a canvas of zeros.

    The image is rotated by its EXIF orientation, transparent parts become white, and it is scaled down (never up) to
    fit, each new pixel being the mean of the pixels it replaces.

    Raises:
        BadRowError: If the file does not exist, has an unknown format, is broken, or exceeds Pillow's pixel limit.
        MemoryError: If memory runs out, which is not counted as a bad row.
    """
    path = locate(name, root)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                pixels = _pixels(image, height, width, "L" if channels == 1 else "RGB")
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        limit = Image.MAX_IMAGE_PIXELS
        raise BadRowError(f"image {name!r}: expected at most {limit:,} pixels, found more", _PUT) from error
    except MemoryError:
        raise
    except Exception as error:  # decoders raise exceptions of any type on a broken file
        reason = f"an image that cannot be decoded ({_first_line(error, path, name)})"
        raise BadRowError(f"image {name!r}: expected {', '.join(FORMATS)}, found {reason}", _PUT) from error
    canvas = np.zeros((channels, height, width), np.uint8)
    planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    canvas[:, : planes.shape[1], : planes.shape[2]] = planes
    return canvas


def _pixels(image: Image.Image, height: int, width: int, mode: str) -> UInt8[np.ndarray, "h w *c"]:
    eight_bits = _eight_bits(ImageOps.exif_transpose(image), image.format)
    upright = _opaque(eight_bits).convert(mode)
    scale = min(1.0, height / upright.height, width / upright.width)
    if scale < 1:
        size = (max(1, round(upright.width * scale)), max(1, round(upright.height * scale)))
        upright = upright.resize(size, Image.Resampling.BOX)
    return np.asarray(upright)


def _eight_bits(image: Image.Image, file_format: str | None) -> Image.Image:
    """Converts 16-bit images by their high bytes; Pillow's own conversion would clip them to white.

    Cameras and scanners write values of 10 or 12 bits into files of 16, whose high bytes are nearly black. A dark image
    of 16 bits looks the same, so that the values stay and a warning tells of it.

    Raises:
        ValueError: If the range of the values is unknown.
    """
    if image.mode in SIXTEEN_BITS or (image.mode == "I" and file_format in ("PNG", "PPM")):
        values = np.asarray(image).astype(np.int64)
        if 0 < (largest := int(values.max())) < 1 << DARK_BITS:
            _warn_of_depth(largest.bit_length())
        return Image.fromarray((values >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("32 bits a channel, of unknown range")
    return image


@cache  # once for each depth
def _warn_of_depth(bits: int) -> None:
    log.warning(
        "an image of 16 bits a channel has values of %d bits only and comes out nearly black: if its camera or scanner "
        "gives %d bits, multiply the values by %d and write the files again.",
        *(bits, max(bits, DARK_BITS), 1 << (16 - max(bits, DARK_BITS))),
    )


def _opaque(image: Image.Image) -> Image.Image:
    if "A" not in image.mode and "a" not in image.mode and "transparency" not in image.info:
        return image
    with_alpha = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", with_alpha.size, "white"), with_alpha)


def _first_line(error: Exception, path: Path, name: str) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].replace(str(path), name).rstrip(".")


_PUT = "Put an intact image there or correct the row"
_ROOT = "Correct the row, or set image_root to the folder that holds all images"
