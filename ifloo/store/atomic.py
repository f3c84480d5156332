"""Atomic writes: temporary file in the same folder, fsync, rename, fsync of the folder."""

import errno
import io
import json
import math
import os
import secrets
import zipfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np

from ifloo.errors import InputError, WorkError

JSON: TypeAlias = "Mapping[str, JSON] | Sequence[JSON] | str | int | float | bool | None"

# Errors of a folder's fsync on file systems that do not support it (some network and FUSE mounts).
_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES}

_NEXT_STEP = {
    errno.ENOSPC: "Free some space on that disk",
    errno.EDQUOT: "Free some of the disk quota",
    errno.EFBIG: "Raise the limit on the size of a file (ulimit -f)",
    errno.EACCES: "Make the folder writable",
    errno.EPERM: "Make the folder writable",
    errno.EROFS: "Make the disk writable",
}


@contextmanager
def replacing(path: Path | str) -> Generator[BinaryIO, None, None]:
    """Opens a temporary file that replaces `path` when the block ends without an error.

    After an error the old file is unchanged and the temporary file is removed (only a SIGKILL leaves it behind, named
    `.<name>.<pid>-<random>.tmp`). Missing folders are created; a symbolic link is followed to its target.

    Raises:
        InputError: If `path` is a folder, a device or a pipe.
        WorkError: If the file cannot be written, as on a full disk or in a folder that is not writable.
    """
    target = Path(path).resolve()
    if target.exists() and not target.is_file():
        kind = "a folder" if target.is_dir() else "a device or a pipe"
        raise InputError(
            f"{path} is {kind}, and a file was to be written there.\n  Nothing was changed. Give the name of a file."
        )
    existed = target.exists()
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        kept = "The old file is unchanged." if existed else "No file was left behind."
        raise WorkError(not_written(Path(path), error, kept)) from error
    _sync_folder_of(Path(path), target)


def write_text(path: Path | str, text: str) -> None:
    """Writes text in UTF-8; raises the same errors as `replacing`."""
    with replacing(path) as file:
        file.write(text.encode("utf-8"))


def write_json(path: Path | str, value: JSON) -> None:
    """Writes `value` as strict JSON: NaN and infinity raise a WorkError, and the old file is unchanged."""
    with replacing(path) as file:
        file.write(encode_json(value, Path(path), indent=1) + b"\n")


def write_npz(path: Path | str, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays as an uncompressed npz; arrays of Python objects, which need pickle, raise a ValueError."""
    # Built in memory first: a zip file on a full disk raises a second error when it is closed.
    content = io.BytesIO()
    # Not np.savez: names of arrays could clash with its own parameters (file, allow_pickle since numpy 2.1).
    with zipfile.ZipFile(content, "w", allowZip64=True) as archive:
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
    with replacing(path) as file:
        file.write(content.getbuffer())


def write_npy(path: Path | str, array: np.ndarray) -> None:
    """Writes one array as npy, without a second copy in memory.

    Raises:
        ValueError: If the array holds Python objects, which need pickle.
    """
    array = np.asarray(array, order="C")
    if array.dtype.hasobject:
        raise ValueError("an array of Python objects cannot be stored without pickle")
    with replacing(path) as file:
        # Not np.save: its fast path loses the errno, so that the error on a full disk is "n requested and m written".
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array.data)


def encode_json(value: JSON, path: Path, indent: int | None = None) -> bytes:
    """Encodes a value as JSON in UTF-8, with keys in the order given.

    Raises:
        WorkError: If a number in it is not finite; the message names its place and `path`, the file not written.
    """
    if (place := _not_finite(value)) is not None:
        raise WorkError(
            f"{path} was not written: {place}, and JSON has no such number.\n"
            "  The file is as it was before. The calculation that gave this value went wrong; its log says more."
        )
    text = json.dumps(value, indent=indent, allow_nan=False, ensure_ascii=False)
    # A lone surrogate (from a file name that is not UTF-8) becomes \udcXX, which is also how JSON writes it.
    return text.encode("utf-8", errors="backslashreplace")


def not_written(path: Path, error: OSError, kept: str) -> str:
    """Composes the message that a file could not be written; `kept` states what is unchanged."""
    step = _NEXT_STEP.get(error.errno or 0, "Remove the cause")
    what = error.strerror or str(error) or type(error).__name__
    return (
        f"Could not write {path}: {what}.\n"
        f"  {kept} {step}, or choose another place for the output, and run the same command again."
    )


def sync_folder(folder: Path) -> None:
    """Flushes a folder, so that a new name in it survives a power cut if the file system supports that.

    Raises:
        OSError: If the disk reports an error.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # a folder can be writable without being readable
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)


def _sync_folder_of(path: Path, target: Path) -> None:
    try:
        sync_folder(target.parent)
    except OSError as error:
        raise WorkError(
            f"Wrote {path}, but its folder could not be flushed to disk: {error.strerror}.\n"
            "  The new content is in place but may not survive a power cut. Check the disk and run the command again."
        ) from error


def _not_finite(value: Any, place: str = "") -> str | None:
    """Describes the first NaN or infinity in a value: `tests.8.slope is nan`; None if there is none."""
    if isinstance(value, float):
        return None if math.isfinite(value) else f"{place or 'the value'} is {float(value)}"
    if isinstance(value, Mapping):
        inner = ((str(key), item) for key, item in value.items())
    elif isinstance(value, (list, tuple)):
        inner = ((str(i), item) for i, item in enumerate(value))
    else:
        return None
    prefix = f"{place}." if place else ""
    return next((found for key, item in inner if (found := _not_finite(item, prefix + key)) is not None), None)
