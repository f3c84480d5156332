"""Records of arrays: npz files that are checked key by key when read and written, and the heads of npy files."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import DTypeLike

from ifloo.errors import InputError, WorkError
from ifloo.store.atomic import write_npz

Arrays = dict[str, np.ndarray]
# Errors of numpy and zipfile on a damaged file. An array in place of an archive raises AttributeError or TypeError,
# depending on the version of Python.
UNREADABLE = (
    OSError,
    EOFError,
    KeyError,
    ValueError,
    TypeError,
    AttributeError,
    NotImplementedError,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True)
class Column:
    """One array of a record, or a single value of it.

    Attributes:
        dtype: Type of the array in memory and on disk; None accepts any floating type and keeps it.
        axes: Name of the items along each dimension, such as ("training sample",); columns that share an axis have the
            same length along it. Empty for a single value.
        optional: Whether a record may lack this column.
    """

    dtype: DTypeLike | None
    axes: tuple[str, ...] = ()
    optional: bool = False

    @property
    def kinds(self) -> str:
        """Accepted kinds of numpy types: those of `dtype`, and for a single number all kinds of numbers."""
        kind = np.dtype(self.dtype or np.float64).kind
        if kind in "US":
            return "US"
        if not self.axes:
            return "fiu"
        return "iu" if kind in "iu" else kind

    def as_stored(self, value: Any) -> np.ndarray:
        """Returns the value in the type of the column."""
        return np.asarray(value) if self.dtype is None else np.asarray(value, dtype=self.dtype)


@dataclass(frozen=True)
class Record:
    """A kind of npz file: its columns by key, and the text of errors about such a file.

    Keys without a column are read unchecked.

    Attributes:
        columns: Columns by key.
        keys: Key of the column that identifies the items along an axis, by axis; all others must have its length.
        refusal: Beginning of the error about a file that is not such a record; `{path}`, `{folder}` and `{name}` are
            replaced by those of the file.
        remedy: Next step in that error.
    """

    columns: Mapping[str, Column]
    keys: Mapping[str, str]
    refusal: str
    remedy: str

    def read(self, path: Path) -> Arrays:
        """Reads all arrays of a file, those with a column in its type; single values have no dimension.

        Raises:
            InputError: If the file is missing or damaged, a key is missing, or an array has another type or shape.
        """
        try:
            arrays = _arrays(path)
        except UNREADABLE as error:
            raise self.refused(path, f"not a readable npz ({str(error) or type(error).__name__})") from error
        if (fault := self.fault(arrays)) is not None:
            raise self.refused(path, fault)
        found = {name: self.columns[name].as_stored(arrays[name]) for name in self.columns if name in arrays}
        return arrays | found

    def write(self, path: Path, values: Mapping[str, Any]) -> None:
        """Writes the values atomically in the types of their columns, in the order given.

        Raises:
            WorkError: If a key is missing, an array has another shape, or the disk is full; an old file is then
                unchanged.
        """
        arrays = {n: self.columns[n].as_stored(x) if n in self.columns else np.asarray(x) for n, x in values.items()}
        if (fault := self.fault(arrays)) is not None:
            raise WorkError(f"{path} was not written: {fault}.\n  An old file there is unchanged.")
        write_npz(path, arrays)

    def refused(self, path: Path, reason: str) -> InputError:
        """Returns the error about a file that is not such a record."""
        start = self.refusal.format(path=path, folder=path.parent, name=path.name)
        return InputError(f"{start}: {reason}.\n  {self.remedy}")

    def fault(self, arrays: Mapping[str, np.ndarray]) -> str | None:
        """Describes why the arrays are not such a record, with what was expected; None if they are one."""
        missing = [name for name, column in self.columns.items() if not column.optional and name not in arrays]
        if missing:
            return f"it lacks {', '.join(missing)}"
        present = {name: column for name, column in self.columns.items() if name in arrays}
        if any(arrays[name].dtype.kind not in column.kinds for name, column in present.items()):
            return self._other_types(arrays, present)
        return self._other_dimensions(arrays, present) or self._other_lengths(arrays, present)

    def _other_types(self, arrays: Mapping[str, np.ndarray], present: Mapping[str, Column]) -> str:
        """Describes found and expected types: of a wrong single value, or of all arrays if one of them is wrong."""
        wrong = [name for name, column in present.items() if arrays[name].dtype.kind not in column.kinds]
        if not present[wrong[0]].axes:
            return f"{wrong[0]} is {arrays[wrong[0]].dtype}, not {_type_of(present[wrong[0]])}"
        names = [name for name, column in present.items() if column.axes and (name in wrong or not column.optional)]
        found = ", ".join(f"{name}{'' if k else ' are'} {arrays[name].dtype}" for k, name in enumerate(names))
        return f"{found}, not {' and '.join(_type_of(present[name]) for name in names)}"

    def _other_dimensions(self, arrays: Mapping[str, np.ndarray], present: Mapping[str, Column]) -> str | None:
        for name, column in present.items():
            if arrays[name].ndim != len(column.axes):
                expected = f"one entry per {' and '.join(column.axes)}" if column.axes else "a single value"
                return f"{name} {arrays[name].shape} is not {expected}"
        return None

    def _other_lengths(self, arrays: Mapping[str, np.ndarray], present: Mapping[str, Column]) -> str | None:
        for name, column in present.items():
            for axis, length in zip(column.axes, arrays[name].shape, strict=True):
                key = self.keys.get(axis, name)
                if length != arrays[key].shape[self.columns[key].axes.index(axis)]:
                    return f"{name} {arrays[name].shape} and {key} {arrays[key].shape} are not one per {axis}"
        return None


def _type_of(column: Column) -> str:
    if column.dtype is None:
        return "a floating type"
    dtype = np.dtype(column.dtype)
    return "text" if dtype.kind in "US" else dtype.name


def optional_number(arrays: Mapping[str, np.ndarray], name: str) -> float | None:
    """Returns the single number under a key; None if the record lacks it."""
    return float(arrays[name]) if name in arrays else None


def _arrays(path: Path) -> Arrays:
    # Opened here, since numpy leaves a file open that it cannot read.
    with open(path, "rb") as file:
        content = np.load(file, allow_pickle=False)
        if not isinstance(content, np.lib.npyio.NpzFile):
            raise ValueError("it holds one bare array")
        with content:
            return {name: content[name] for name in content.files}


def write_npy_head(file: BinaryIO, shape: tuple[int, ...]) -> None:
    """Writes the head of a float32 npy of this shape; its numbers follow in C order."""
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})


def read_npy_head(file: BinaryIO, path: Path) -> tuple[tuple[int, ...], int]:
    """Reads the shape of a float32 npy in C order, and the position where its numbers begin.

    Raises:
        InputError: If the file is damaged or holds something else.
    """
    try:
        np.lib.format.read_magic(file)
        shape, by_columns, dtype = np.lib.format.read_array_header_1_0(file)
    except UNREADABLE as error:
        raise InputError(_no_matrix(path, f"not a readable npy ({str(error) or type(error).__name__})")) from error
    if by_columns or dtype != np.dtype("<f4"):
        order = "Fortran" if by_columns else "C"
        raise InputError(_no_matrix(path, f"its numbers are {dtype} in {order} order, not float32 in C order"))
    return shape, file.tell()


def _no_matrix(path: Path, reason: str) -> str:
    return (
        f"{path} holds no matrix of scores of ifloo: {reason}.\n"
        "  Run the same command again with --overwrite to replace it."
    )
