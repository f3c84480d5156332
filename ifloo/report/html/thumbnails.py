"""Thumbnails as data URIs, embedded in the page."""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ifloo.errors import InputError

SIDE = 64  # largest side of a thumbnail, pixels
_COLOURS = 256  # one byte per pixel: the largest colour thumbnail has a third of the size in full colour


def thumbnail(picture: NDArray[np.uint8], name: str) -> str:
    """Encodes an image as a PNG data URI, its longer side at most `SIDE` pixels; smaller images keep their size.

    Args:
        picture: Image, uint8, [height, width] or [height, width, 3].
        name: Name of the sample in error messages.

    Raises:
        InputError: If the image has another type or shape, or is empty.
    """
    shape, kind = np.shape(picture), np.asarray(picture).dtype
    if kind != np.uint8 or len(shape) not in (2, 3) or shape[2:] not in ((), (3,)) or 0 in shape:
        raise InputError(
            f"The picture of {name} is {kind} with shape {shape}; the report shows uint8 images, [height, width] or "
            "[height, width, 3], that are not empty.\n"
            "  Let picture(id) of the data set give one of these, or None where there is none."
        )
    image = Image.fromarray(np.ascontiguousarray(picture))
    if max(image.size) > SIDE:
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    if image.mode == "RGB":
        image = image.quantize(_COLOURS)
    file = io.BytesIO()
    image.save(file, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
