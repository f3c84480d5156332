"""Image files as arrays of one size: found below one folder only, decoded by Pillow, refused rather than guessed."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from ifloo.data.multimodal.row import BadRowError

# Pillow knows more, some of which start other programs.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N")


def locate(name: str, root: Path) -> Path:
    """The file of an image in the data, with links followed.

    Args:
        name: a path from `root`, or an absolute one below it.
        root: the folder that no image may leave.

    Raises:
        BadRowError: it leaves the folder, or there is no such file.
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
    """Pixels 0..255 of the image, top left on a canvas of zeros.

    Turned as its EXIF says, laid on white where it is transparent, and scaled down (never up) to fit, every pixel the
    mean of those it replaces.

    Raises:
        BadRowError: no such file, no image of a known format, broken, or more pixels than Pillow takes for harmless.
        MemoryError: none is left; that is not the image's fault.
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
    except Exception as error:  # decoders raise whatever they like on a broken file
        reason = f"an image that cannot be decoded ({_said(error, path, name)})"
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
    """Pillow's own conversion would clip 16 bits to white.

    Raises:
        ValueError: values whose range is unknown.
    """
    if image.mode in SIXTEEN_BITS or (image.mode == "I" and file_format in ("PNG", "PPM")):
        return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("32 bits a channel, of unknown range")
    return image


def _opaque(image: Image.Image) -> Image.Image:
    if "A" not in image.mode and "a" not in image.mode and "transparency" not in image.info:
        return image
    seen = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen)


def _said(error: Exception, path: Path, name: str) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].replace(str(path), name).rstrip(".")


_PUT = "Put an intact image there or correct the row"
_ROOT = "Correct the row, or set image_root to the folder that holds all images"
