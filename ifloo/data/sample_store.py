"""Decoded samples that have been read: kept in a share of memory, beyond it in a memory-mapped temporary file."""

from __future__ import annotations

import io
import logging
import mmap
import os
import pickle
import shutil
import tempfile
import weakref
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ifloo.objective.batches import tensors_of

log = logging.getLogger(__name__)
SHARE = 0.25  # of the available memory
OF_DISK = 0.5  # share of the free space on disk that the file may take


class SampleStore:
    """Samples by key, as bytes, so that no reader changes what the next one gets.

    The file has no name and vanishes with the process. Samples that cannot be pickled are kept in memory as they are.
    Only the process that made the store adds to it; its copies in other processes are read, or start empty if pickled.

    Attributes:
        share: Share of the available memory.
        folder: Folder of the file; None: the folder for temporary files.
    """

    def __init__(self, share: float = SHARE, folder: Path | None = None) -> None:
        """Creates an empty store; the available memory is measured when the first sample is kept."""
        self.share, self.folder = share, folder
        self._limit: int | None = None
        self._held: dict[Hashable, bytes] = {}
        self._as_they_are: dict[Hashable, object] = {}
        self._places: dict[Hashable, tuple[int, int]] = {}
        self._file: IO[bytes] | None = None
        self._map: mmap.mmap | None = None
        self._used, self._end, self._room, self._full = 0, 0, 0, False
        self._owner = os.getpid()

    def __reduce__(self) -> tuple[type[SampleStore], tuple[float, Path | None]]:
        """Pickles no sample: another process reads them itself."""
        return type(self), (self.share, self.folder)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._held or key in self._places or key in self._as_they_are

    @property
    def bytes_in_memory(self) -> int:
        """Bytes of the samples in memory."""
        return self._used

    @property
    def bytes_in_file(self) -> int:
        """Bytes of the samples in the file."""
        return self._end

    def get(self, key: Hashable) -> object:
        """Returns a sample.

        Raises:
            KeyError: If no such sample is kept.
        """
        if key in self._as_they_are:
            return self._as_they_are[key]
        return unpacked(self._held[key] if key in self._held else self._from_file(*self._places[key]))

    def put(self, key: Hashable, sample: object) -> None:
        """Keeps a sample; does nothing if neither memory nor disk has room for it, or in a copy of the store."""
        if os.getpid() != self._owner:
            return
        try:
            content = packed(sample)
        except Exception:  # an object of the user's may refuse to be pickled in any way
            if (size := sum(x.numel() * x.element_size() for x in tensors_of(sample))) + self._used <= self.limit:
                self._as_they_are[key] = sample
                self._used += size
            return
        self.put_packed(key, content)

    def put_packed(self, key: Hashable, content: bytes) -> None:
        """Keeps a sample that is packed already."""
        if self._used + len(content) <= self.limit:
            self._held[key] = content
            self._used += len(content)
        elif not self._full:
            self._to_file(key, content)

    @property
    def limit(self) -> int:
        """Largest number of bytes in memory."""
        if self._limit is None:
            self._limit = int(self.share * available_memory())
        return self._limit

    def _to_file(self, key: Hashable, content: bytes) -> None:
        if self._file is None:
            if self.folder is not None:
                self.folder.mkdir(parents=True, exist_ok=True)
            self._file = file = tempfile.TemporaryFile(dir=self.folder)  # ruff: ignore[open-file-with-context-handler]  # closed with the store
            weakref.finalize(self, file.close)
            self._room = int(OF_DISK * shutil.disk_usage(self.folder or tempfile.gettempdir()).free)
            log.info(
                "decoded samples: %.2f GiB are kept in memory (%.0f %% of what was available), further ones in a "
                "temporary file in %s",
                self._used / 2**30,
                100 * self.share,
                self.folder or tempfile.gettempdir(),
            )
        if self._end + len(content) > self._room:
            self._full = True
            log.warning("decoded samples: no room in memory and on disk for all; the rest is read again in each pass")
            return
        self._file.write(content)
        self._places[key] = (self._end, len(content))
        self._end += len(content)

    def _from_file(self, start: int, size: int) -> bytes:
        if self._map is None or len(self._map) < start + size:
            assert self._file is not None
            self._file.flush()
            self._map = mmap.mmap(self._file.fileno(), self._end, access=mmap.ACCESS_READ)
        return self._map[start : start + size]


class _Pickler(pickle.Pickler):
    """Pickler that writes the bytes of tensors themselves, without the archive that torch makes of each."""

    def reducer_override(self, value: object) -> tuple[Callable[..., Tensor], tuple[object, ...]]:
        if type(value) is not Tensor or value.device.type != "cpu" or value.layout is not torch.strided:
            return NotImplemented  # type: ignore[no-any-return]
        if value.requires_grad or value.is_quantized:
            return NotImplemented  # type: ignore[no-any-return]
        plain = value.resolve_conj().resolve_neg().contiguous().reshape(-1)
        return _tensor, (plain.view(torch.uint8).numpy(), value.dtype, tuple(value.shape))


def packed(sample: object) -> bytes:
    """Returns a sample as bytes, for `unpacked` in the same run.

    Raises:
        Exception: If an object in it cannot be pickled.
    """
    content = io.BytesIO()
    _Pickler(content, protocol=5).dump(sample)
    return content.getvalue()


def unpacked(content: bytes) -> object:
    """Returns a new copy of the sample that `packed` was given."""
    return pickle.loads(content)


def _tensor(content: NDArray[np.uint8], dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(content).view(dtype).reshape(shape)


def available_memory() -> int:
    """Returns the bytes of memory that are available to this process."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")]
        group = Path("/sys/fs/cgroup")
        if (limit := (group / "memory.max").read_text().strip()) != "max":
            found.append(int(limit) - int((group / "memory.current").read_text()))
    except OSError:  # another system, or no such limit
        pass
    return max(0, min(found))
