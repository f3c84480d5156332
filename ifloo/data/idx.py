"""Reader of IDX, the format of the MNIST files: a magic number, the sizes, then the values as unsigned bytes."""

import gzip
import hashlib
import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from ifloo.errors import InputError

UNSIGNED_BYTES = 0x08
GZIP_MAGIC = b"\x1f\x8b"
GZIP_ERRORS = (gzip.BadGzipFile, EOFError, zlib.error)
FETCH_AGAIN = "Put an intact copy there, or delete it to have it downloaded again."


@dataclass(frozen=True)
class IdxFile:
    """A published IDX file.

    Attributes:
        name: File name without .gz.
        ndim: Number of dimensions of the array.
        md5: MD5 of the uncompressed content.
    """

    name: str
    ndim: int
    md5: str


def read_idx(path: Path, ndim: int, md5: str | None = None, remedy: str = FETCH_AGAIN) -> UInt8[np.ndarray, "..."]:
    """Reads an IDX file of unsigned bytes, gzip or plain (recognised by its content, not by its name).

    Args:
        path: Path of the file.
        ndim: Number of dimensions: 3 for images [n, height, width], 1 for labels [n].
        md5: Expected MD5 of the uncompressed content; None skips the check.
        remedy: Next step that an error message proposes.

    Returns:
        The array, read-only.

    Raises:
        InputError: If the file is missing, unreadable, truncated, corrupt, of another type, or not the published one.
    """
    try:
        content = uncompressed(path.read_bytes())
    except GZIP_ERRORS as error:
        raise InputError(f"{path}: the gzip data is truncated or corrupt ({error}).\n  {remedy}") from error
    except OSError as error:
        raise InputError(f"{path}: expected a readable IDX file, found: {error.strerror}.\n  {remedy}") from error
    if problem := _problem(content, ndim, md5):
        raise InputError(f"{path}: {problem}.\n  {remedy}")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * ndim).reshape(_sizes(content, ndim))


def uncompressed(raw: bytes) -> bytes:
    """Decompresses the content of a file if it is gzip; raises one of `GZIP_ERRORS` if the gzip data is corrupt."""
    return gzip.decompress(raw) if raw.startswith(GZIP_MAGIC) else raw


def content_md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _problem(content: bytes, ndim: int, md5: str | None) -> str | None:
    header = 4 + 4 * ndim
    magic = bytes([0, 0, UNSIGNED_BYTES, ndim])
    if content[:4] != magic:
        dimensions = "1 dimension" if ndim == 1 else f"{ndim} dimensions"
        found = f"0x{content[:4].hex()}" if content else "an empty file"
        return f"expected the IDX magic number 0x{magic.hex()} (unsigned bytes, {dimensions}), found {found}"
    if len(content) < header:
        return f"expected an IDX header of {header} bytes, found {len(content)} bytes in all"
    sizes = _sizes(content, ndim)
    if (found_bytes := len(content) - header) != math.prod(sizes):
        shape = " x ".join(str(size) for size in sizes)
        return f"expected {shape} = {math.prod(sizes)} bytes of values by its header, found {found_bytes}"
    if md5 is not None and (found_md5 := content_md5(content)) != md5:
        return f"expected content with MD5 {md5}, the published one, found {found_md5}"
    return None


def _sizes(content: bytes, ndim: int) -> list[int]:
    return [int(size) for size in np.frombuffer(content, ">u4", count=ndim, offset=4)]
