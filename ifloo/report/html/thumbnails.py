"""Small pictures that travel inside the page, as data URIs."""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ifloo.errors import InputError

SIDE = 64  # pixels, of the longer side at most
_COLOURS = 256  # a byte per pixel: the largest colour thumbnail is a third of what it would be in full colour


def thumbnail(picture: NDArray[np.uint8], name: str) -> str:
    """The picture as a PNG data URI, its longer side shrunk to at most `SIDE` pixels; small ones keep their pixels.

    Args:
        picture: uint8, [height, width] or [height, width, 3].
        name: what an error calls it.

    Raises:
        InputError: it is no such picture, or empty.
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
